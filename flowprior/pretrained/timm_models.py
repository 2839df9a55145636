"""timm's models: one place that builds them, and that puts weights from a file or the hub into them, all or none."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from flowprior.errors import UserError, one_line
from flowprior.pretrained.efficientnet_names import has_keras_names, with_timm_names
from flowprior.pretrained.hub_file import NoSuchFile, hub_file
from flowprior.pretrained.weights import HEADS, POOLING, PRETRAINING, fill, read_weights, without_prefixes

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


class NumbersOnTheCPU(TorchFunctionMode):
    """Within, ``torch.linspace`` is computed on the CPU: timm before 1.0.20 reads its rates of dropped paths from it, which the meta
    device has no values for."""

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return function(*args, **kwargs)


def timm_config(name: str) -> Any:
    """What timm knows about the weights of this name (``mean``, ``std``, ``hf_hub_id``, ...); None where it has none.

    Raises:
        UserError: timm knows no such model, or no such weights of it (the tag behind the dot).
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.3)
        raise UserError(
            f"timm knows no model '{name}' (version {timm.__version__}); near it are {', '.join(near) or 'none'}"
        )
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        architecture, _, tag = name.partition(".")
        known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
        near = difflib.get_close_matches(tag, known, n=3, cutoff=0.0)
        raise UserError(
            f"timm knows no weights '{tag}' of {architecture} (version {timm.__version__}); near it are {', '.join(near) or 'none'}"
        ) from error


def timm_module(name: str) -> str:
    """The module of timm that makes this model, ``vision_transformer`` say; :class:`UserError` where there is no such model."""
    import timm

    timm_config(name)
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def build_timm(name: str, weights: Path | None = None, **sizes: Any) -> nn.Module:
    """A timm model without a classifier; random weights are drawn from the global generator.

    Args:
        name: of timm, with or without a tag.
        weights: file to fill it with; timm's own conversion takes other people's names, and resamples patches and positions to ``sizes``.
        sizes: options of the model (``img_size``, ``patch_size``, ...).

    Raises:
        UserError: timm knows no such model, cannot build it so, or the file does not fill exactly it.
    """
    import timm

    timm_config(name)
    at = f" at {sizes['img_size']} px" if "img_size" in sizes else ""
    try:
        with NumbersOnTheCPU():
            model = timm.create_model(name, pretrained=False, num_classes=0, **sizes)
    except Exception as error:  # models raise a dozen kinds at sizes that they cannot have
        raise UserError(f"timm cannot build '{name}'{at} ({one_line(error)})") from error
    if weights is not None:
        _load(model, name, weights, at)
    return model


def hub_weights(name: str, remedy: str) -> Path:
    """The local path of the hub's weight file of a timm model, fetched if need be; ``remedy`` is what else a person may write.

    Raises:
        UserError: the hub has none for this name, or it cannot be fetched.
    """
    config = timm_config(name)
    if config is None or not config.hf_hub_id:
        elsewhere = f", but at {config.url}" if config is not None and config.url else ""
        raise UserError(f"timm knows no weights of '{name}' on the hub{elsewhere}: {remedy}")
    named = config.hf_hub_filename
    for file in (named,) if named else HUB_FILES:
        try:
            return hub_file(config.hf_hub_id, file, remedy)
        except NoSuchFile:
            continue
    raise UserError(f"the hub's {config.hf_hub_id} holds no weights of '{name}': {remedy}")


def _load(model: nn.Module, name: str, file: Path, at: str) -> None:
    classifiers = model.pretrained_cfg.get("classifier") or ()
    heads = HEADS + tuple(f"{part}." for part in ((classifiers,) if isinstance(classifiers, str) else classifiers))
    weights = without_prefixes(read_weights(file, f"file of weights of '{name}'"), model.state_dict().keys(), heads)
    count = len(weights.tensors)
    try:
        tensors = dict(weights.tensors)
        if has_keras_names(tensors) and hasattr(model, "blocks"):
            tensors = with_timm_names(tensors, model)
        converted = _conversion(model, name)(tensors)
    except Exception as error:  # of names and shapes of another network: timm's conversions check nothing
        raise UserError(f"the weights in {file} are not those of '{name}'{at} ({one_line(error)})") from error
    if len(converted) < count and not any(name in tensors for name in converted):
        weights = weights._replace(
            changes=(*weights.changes, f"{len(converted)} of its {count} tensors are the network's")
        )
    fill(model, weights._replace(tensors=converted), f"'{name}'{at}", heads + PRETRAINING + POOLING)


def _conversion(model: nn.Module, name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """timm's function from published names and sizes to the model's, with the options that timm gives it for this name."""
    function = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if function is None:
        return lambda tensors: tensors
    options: dict[str, Any] = {}
    if "flexi" in name or "radio" in name:  # resampled so in their training
        options = {"interpolation": "bilinear", "antialias": False}
    if type(model).__module__ in ("timm.models.vision_transformer", "timm.models.deit"):
        options["adapt_layer_scale"] = name.startswith("deit3")
    return lambda tensors: partial(function, **options)(tensors, model)
