"""The flow map of MAR's head: a network that jumps along the head's flow over any span of time, guidance included."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from flowprior.flow.velocity import VelocityMLP, time_features

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
        self.velocity = copy.deepcopy(head)
        self.guided_embed = nn.Linear(head.cond_channels, width, bias=False)
        self.span_embed = _embedding(1 + 2 * SPAN_FREQUENCIES, width)
        self.scale_embed = _embedding(1, width)
        with torch.no_grad():
            self.guided_embed.weight.copy_(head.cond_embed.weight)

    def embed_guided(self, cond: Tensor, uncond: Tensor | None = None, *, scale: Tensor | float = 1.0) -> Tensor:
        """What the network is told besides times: ``(..., W)``.

        Args:
            cond: with the class, ``(..., K)``.
            uncond: without it, alike; needed unless ``scale`` is 1.
            scale: of the guidance, a number or a tensor that broadcasts against the leading dimensions.
        """
        excess = torch.as_tensor(scale, dtype=cond.dtype, device=cond.device).unsqueeze(-1) - 1  # (..., 1)
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


def _embedding(features: int, width: int) -> nn.Sequential:
    """An MLP that starts at zero."""
    layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
    nn.init.zeros_(layers[2].weight)
    nn.init.zeros_(layers[2].bias)
    return layers
