"""NLL and L_align over a square of the plane."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flowprior.flow.likelihood import alignment_per_token
from toy_examples.config import MapConfig
from toy_examples.density import NLL
from toy_examples.distributions import ToyDistribution
from toy_examples.flow_stage import CHANNELS, FrozenFlow

DATA_POINTS = 10_000
DATA_SEED = 0


@dataclass
class PlaneMaps:
    """Two functions on a square grid.

    Attributes:
        half_width: the square is [-half_width, half_width]^2.
        nll, alignment: ``(G, G)``, first index upward along the second coordinate; nats, and Eq. 5 per channel.
        data: ``(D, 2)`` samples of the target.
    """

    half_width: float
    nll: Tensor
    alignment: Tensor
    data: Tensor


def draw_maps(
    flow: FrozenFlow, target: ToyDistribution, nll: NLL, config: MapConfig, device: torch.device
) -> PlaneMaps:
    """Both functions over the square."""
    line = torch.linspace(-config.half_width, config.half_width, config.grid)
    points = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, 2)
    alignment = alignment_per_token(flow.velocity, points.to(device), pairs=config.pairs).cpu() / CHANNELS
    shape = (config.grid, config.grid)
    data = target.sample(DATA_POINTS, torch.Generator().manual_seed(DATA_SEED))
    return PlaneMaps(config.half_width, nll(points).view(shape), alignment.view(shape), data)
