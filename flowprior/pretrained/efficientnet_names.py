"""EfficientNet's names in Keras' manner, which PyTorch ports and their weight files have, as timm's."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor, nn

OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# A block without an expansion has no `_expand_conv`, and timm counts its parts from the first that is there.
SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}


def has_keras_names(names: Iterable[str]) -> bool:
    """Whether these are the names of an EfficientNet in Keras' manner."""
    return "_conv_stem.weight" in names


def with_timm_names(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The same tensors by the names that ``model``, an EfficientNet of timm, has for them; a name that is unknown stays.

    Raises:
        ValueError: the model has fewer blocks.
    """
    places = [f"blocks.{stage}.{i}" for stage, blocks in enumerate(model.blocks) for i in range(len(blocks))]
    expanded = {name.split(".")[1] for name in tensors if "_expand_conv" in name}

    def renamed(name: str) -> str:
        if not (match := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)):
            part, dot, rest = name.partition(".")
            return OUTSIDE.get(part, part) + dot + rest
        number, part, rest = match.groups()
        if int(number) >= len(places):
            raise ValueError(f"block {number} of {len(places)}")
        parts = SQUEEZE | (INVERTED if number in expanded else SEPARABLE)
        return f"{places[int(number)]}.{parts.get(part, part)}.{rest}"

    return {renamed(name): value for name, value in tensors.items()}
