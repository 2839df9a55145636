"""The published velocity network's arithmetic, said plainly, under its published names. Its time runs from data to noise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def features(t: Tensor) -> Tensor:
    """Cosines and sines of times in [0, 1], as they are, ``(..., 256)``."""
    angles = t.unsqueeze(-1) * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    return torch.cat([angles.cos(), angles.sin()], -1)


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(code).chunk(3, -1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class PublishedFlow(nn.Module):
    """Every parameter is random; ``condition`` channels, or none."""

    def __init__(self, channels: int, width: int, depth: int, condition: int = 0) -> None:
        super().__init__()
        self.input_proj = nn.Linear(channels, width)
        self.time_embed = nn.Module()
        self.time_embed.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        if condition:
            self.cond_embed = nn.Linear(condition, width)
        self.res_blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(width, channels)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, mean=float(name.endswith("in_ln.weight")), std=0.15)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """Towards noise, at ``x (..., C)`` of time ``t (...)``, 0 at the data."""
        code = self.time_embed.mlp(features(t))
        if condition is not None:
            code = code + self.cond_embed(condition)
        h = self.input_proj(x)
        for block in self.res_blocks:
            h = block(h, code)
        shift, scale = self.final_layer.adaLN_modulation(code).chunk(2, -1)
        return self.final_layer.linear(F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift)


def matching_loss(
    network: nn.Module, data: Tensor, noise: Tensor, t: Tensor, condition: Tensor | None = None
) -> Tensor:
    """Mean over everything of the squared error of the velocity at ``(1 - t) data + t noise``, t from data to noise."""
    x = (1 - t).unsqueeze(-1) * data + t.unsqueeze(-1) * noise
    return (network(x, t, condition) - (noise - data)).square().mean()
