"""The flow map of MAR's head: a network that jumps along the head's flow over any span of time, guidance included."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.errors import UserError, one_line
from flowprior.flow.velocity import VelocityMLP, time_features
from flowprior.run.files import build_saved, read_json, read_tensors, tensors_fingerprint, write_json, write_tensors

FORMAT_VERSION = 1
SPAN_FREQUENCIES = 8


def span_features(span: Tensor) -> Tensor:
    """Smooth features of spans of time ``(...)`` in [0, 1]: ``(..., 1 + 2 SPAN_FREQUENCIES)``, all of them 0 at 0."""
    angles = span.unsqueeze(-1) * torch.arange(1, SPAN_FREQUENCIES + 1, device=span.device) * (math.pi / 2)
    return torch.cat([span.unsqueeze(-1), angles.sin(), angles.cos() - 1], dim=-1)


class FlowMap(nn.Module):
    """``X(x, s, t) = x + (t - s) u(x, s, t)``, which carries a token from time s to time t along the flow of a head
    (Boffi et al. 2025, "How to build a consistency model", arXiv 2505.18825, Sec. 2).

    The flow is that of the guided velocity ``v_u + w (v_c - v_u)`` under the conditions with the class, c, and without it, u. Both
    conditions and w are inputs of the mean velocity u(x, s, t), so that one evaluation serves a guided jump; at w = 1 only c is.

    A new map is the head itself: its mean velocity is the head's velocity at s, under the condition c + (w - 1)(c - u).

    Args:
        head: gives sizes and first weights.
        guidance: the smallest and the largest w that the map is to be used with.
    """

    def __init__(self, head: VelocityMLP, guidance: tuple[float, float]) -> None:
        super().__init__()
        self.guidance = guidance
        width = head.width
        self.velocity = copy.deepcopy(head).requires_grad_(True)
        self.guided_embed = nn.Linear(head.cond_channels, width, bias=False)
        self.span_embed = zero_embedding(1 + 2 * SPAN_FREQUENCIES, width)
        self.scale_embed = zero_embedding(1, width)
        with torch.no_grad():
            self.guided_embed.weight.copy_(head.cond_embed.weight)

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """What ``train.compile`` compiles: layer by layer, since a jump calls the layers and not the network."""
        return [*self.velocity.blocks, self.velocity.output]

    def embed_guided(self, cond: Tensor, uncond: Tensor | None = None, *, scale: Tensor | float = 1.0) -> Tensor:
        """What the network is told besides times: ``(..., W)``.

        Args:
            cond: with the class, ``(..., K)``.
            uncond: without it, alike; needed unless ``scale`` is 1.
            scale: of the guidance, a number or ``(..., 1)``.
        """
        scale = scale if isinstance(scale, Tensor) else cond.new_full((1,), scale)
        excess = scale - 1  # (..., 1)
        embedded = self.velocity.embed_condition(cond) + self.scale_embed(excess)  # (..., W)
        return embedded if uncond is None else embedded + self.guided_embed(excess * (cond - uncond))

    def time_code(self, s: Tensor, t: Tensor) -> Tensor:
        """Of jumps from ``s (...)`` to ``t (...)``: ``(..., W)``."""
        return self.velocity.time_embed(time_features(s)) + self.span_embed(span_features(t - s))

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
        """u of tokens ``x (..., C)``; times and :meth:`embed_guided`'s output broadcast against its leading dimensions."""
        code, network = self.time_code(s, t) + embedded, self.velocity  # (..., W)
        modulations = [block.modulation(code) for block in network.blocks] + [network.output.modulation(code)]
        return network.velocity(x, modulations)  # (..., C)

    def forward(self, x: Tensor, s: Tensor, t: Tensor, embedded: Tensor) -> Tensor:
        """X of tokens ``x (..., C)``, arguments as for :meth:`mean_velocity`."""
        return x + (t - s).unsqueeze(-1) * self.mean_velocity(x, s, t, embedded)

    def check_guidance(self, cfg: float) -> None:
        """A :class:`UserError` for a guidance scale outside of those that the map serves."""
        check_guidance(self.guidance, cfg, "the flow map", "distil")

    @property
    def fingerprint(self) -> str:
        """Of the weights."""
        return tensors_fingerprint(self.state_dict())

    def save(self, folder: Path, generator: str, about: dict[str, Any]) -> None:
        """Write ``model.safetensors`` and ``config.json``.

        Args:
            folder: where to.
            generator: fingerprint of the one whose head this is the map of.
            about: what else should be remembered.
        """
        write_tensors(folder / "model.safetensors", self.state_dict())
        write_json(
            folder / "config.json",
            {
                "format": FORMAT_VERSION,
                "head": self.velocity.sizes,
                "guidance": list(self.guidance),
                "generator": generator,
                "about": about,
                "fingerprint": self.fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> FlowMap:
        """Read a map that :meth:`save` wrote, frozen and on the CPU; a :class:`UserError` where it is none or damaged."""
        config = read_json(folder / "config.json", "flow map")
        try:
            if config["format"] != FORMAT_VERSION:
                raise UserError(f"the flow map in {folder} has format {config['format']}, not {FORMAT_VERSION}")
            sizes, (low, high) = dict(config["head"]), map(float, config["guidance"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'config.json'} is not a flow map's config ({one_line(error)})") from error
        tensors = read_tensors(folder / "model.safetensors", "flow map's weights")
        made = build_saved(lambda: cls(VelocityMLP(**sizes), (low, high)), sizes, tensors, f"the flow map in {folder}")
        if made.fingerprint != config.get("fingerprint"):
            raise UserError(
                f"the weights in {folder / 'model.safetensors'} are not those that its config.json was written with: restore the folder"
            )
        return made.eval().requires_grad_(False)


def check_guidance(guidance: tuple[float, float], cfg: float, what: str, section: str) -> None:
    """A :class:`UserError` where ``what``, distilled for scales of ``guidance`` by options of ``section``, does not serve ``cfg``."""
    low, high = guidance
    if not low <= cfg <= high:
        raise UserError(
            f"{what} was distilled for guidance scales from {low:g} to {high:g}, not {cfg:g}: take one of these, "
            f"or distil it anew with {section}.guidance=[{min(low, cfg):g},{max(high, cfg):g}]"
        )


def zero_embedding(features: int, width: int) -> nn.Sequential:
    """An MLP that starts at zero."""
    layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
    nn.init.zeros_(layers[2].weight)
    nn.init.zeros_(layers[2].bias)
    return layers
