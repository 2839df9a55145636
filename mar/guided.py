"""Guidance distilled into MAR's transformer: one pass that takes the guidance scale as an input, in place of one with and one without the class."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from flowprior.errors import UserError, one_line
from flowprior.run.files import build_saved, read_json, read_tensors, tensors_fingerprint, write_json, write_tensors
from mar.flow_map import FlowMap, check_guidance, zero_embedding

if TYPE_CHECKING:
    from mar.model import MAR

FORMAT_VERSION = 1


class GuidedTransformer(nn.Module):
    """A copy of a trained MAR's transformer whose condition is already guided, and a copy of the flow map that draws tokens under it.

    The scale w joins the class in the buffer tokens, by an embedding of w - 1 that starts at zero, and the map has it beside the one
    condition (Meng et al. 2023, "On distillation of guided diffusion models", arXiv 2210.03142, whose first stage this is). Before
    training it draws what the map draws, but at w = 1 alone.

    Args:
        model: gives sizes and first weights; it stays as it is.
        flow_map: of its head, likewise.
        guidance: the smallest and the largest w that it is to be used with.
    """

    def __init__(self, model: MAR, flow_map: FlowMap, guidance: tuple[float, float]) -> None:
        super().__init__()
        self.guidance = guidance
        self.transformer = copy.deepcopy(model)
        self.transformer.head, self.transformer.flow_map, self.transformer.guided = nn.Identity(), None, None
        self.transformer.scale_embed = zero_embedding(1, model.config.width)
        self.flow_map = copy.deepcopy(flow_map)
        self.requires_grad_(True)
        self.flow_map.guided_embed.requires_grad_(False)  # of the difference of two conditions: here is one

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """What ``train.compile`` compiles; samplers replay the map's layers instead (``cuda_graphs``)."""
        return [*self.transformer_blocks, *self.flow_map.compiled_parts]

    @property
    def transformer_blocks(self) -> list[nn.Module]:
        """What ``sample.compile`` compiles."""
        return [*self.transformer.encoder, *self.transformer.decoder]

    def check_guidance(self, cfg: float) -> None:
        """A :class:`UserError` for a guidance scale outside of those that it serves."""
        check_guidance(self.guidance, cfg, "the guided transformer", "distil_guidance")

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return tensors_fingerprint(self.state_dict())

    def save(self, folder: Path, generator: str, about: dict[str, Any]) -> None:
        """Write ``model.safetensors`` and ``config.json``, arguments as for :meth:`FlowMap.save`."""
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_json(
            folder / "config.json",
            {
                "format": FORMAT_VERSION,
                "guidance": list(self.guidance),
                "generator": generator,
                "about": about,
                "fingerprint": self.fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: Path, model: MAR) -> GuidedTransformer:
        """Read what :meth:`save` wrote for ``model``, frozen and on the CPU; a :class:`UserError` where it is none or damaged."""
        config, what = read_json(folder / "config.json", "guided transformer"), f"the guided transformer in {folder}"
        try:
            if config["format"] != FORMAT_VERSION:
                raise UserError(f"{what} has format {config['format']}, not {FORMAT_VERSION}")
            low, high = map(float, config["guidance"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{folder / 'config.json'} is not a guided transformer's config ({one_line(error)})"
            ) from error
        tensors = read_tensors(folder / "model.safetensors", "guided transformer's weights")
        start = copy.deepcopy(model).to("cpu")

        def make() -> GuidedTransformer:
            return cls(start, FlowMap(start.head, (low, high)), (low, high))

        made = build_saved(make, {}, tensors, what)
        if made.fingerprint != config.get("fingerprint"):
            raise UserError(
                f"the weights in {folder / 'model.safetensors'} are not those that its config.json was written with: restore the folder"
            )
        return made.eval().requires_grad_(False)
