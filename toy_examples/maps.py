"""NLL and L_align over a square of the plane, and the numbers that go with a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowprior.flow.prior import FlowPrior
from toy_examples.alignment import alignment_at, pearson, spearman
from toy_examples.config import MapConfig
from toy_examples.distributions import ToyDistribution
from toy_examples.stages import AlignedLatents

MARGIN = 1.1
DATA_POINTS = 10_000
DATA_SEED = 0


@dataclass
class PlaneMaps:
    """Two functions on a square grid.

    Attributes:
        region: left, right, bottom, top.
        nll, alignment: ``(G, G)``, first index upward along the second coordinate.
        data: ``(D, 2)`` samples of the target.
    """

    region: tuple[float, float, float, float]
    nll: Tensor
    alignment: Tensor
    data: Tensor


def draw_maps(prior: FlowPrior, target: ToyDistribution, config: MapConfig, device: torch.device) -> PlaneMaps:
    """NLL and L_align over the smallest square around the data, widened by a tenth."""
    data = target.sample(DATA_POINTS, torch.Generator().manual_seed(DATA_SEED))
    low, high = data.amin(0), data.amax(0)
    centre, half = (low + high) / 2, MARGIN * (high - low).max() / 2
    left, bottom, right, top = (round(v, 2) for v in [*(centre - half).tolist(), *(centre + half).tolist()])
    x, y = torch.linspace(left, right, config.grid), torch.linspace(bottom, top, config.grid)
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)
    alignment = alignment_at(prior.velocity, points.to(device), config.pairs).cpu()
    shape = (config.grid, config.grid)
    return PlaneMaps((left, right, bottom, top), -target.log_density(points).view(shape), alignment.view(shape), data)


def figures_of_merit(
    prior: FlowPrior,
    target: ToyDistribution,
    maps: PlaneMaps,
    latents: AlignedLatents,
    config: MapConfig,
    device: torch.device,
) -> dict[str, Any]:
    """What ``metrics.json`` says. L_align is per channel; NLL is exact, in nats, of the normalised variable."""
    alignment, nll = (torch.tensor([row[name] for row in latents.history]) for name in ("alignment", "nll"))
    grid_alignment, grid_nll = maps.alignment.flatten(), maps.nll.flatten()
    figures = {
        "along_optimisation": {
            "pearson": pearson(alignment, nll),
            "spearman": spearman(alignment, nll),
            "records": len(nll),
        },
        "over_grid": {
            "pearson": pearson(grid_alignment, grid_nll.clamp(max=config.nll_clip)),
            "spearman": spearman(grid_alignment, grid_nll),
            "nll_clip_of_pearson": config.nll_clip,
            "region": list(maps.region),
            "points_per_side": config.grid,
            "pairs": config.pairs,
        },
        "nll": {
            "latents_before": nll[0].item(),
            "latents_after": nll[-1].item(),
            "data": -target.log_density(maps.data).mean().item(),
        },
        "alignment": {
            "latents_before": alignment[0].item(),
            "latents_after": alignment_at(prior.velocity, latents.end, config.pairs).mean().item(),
            "data": alignment_at(prior.velocity, maps.data.to(device), config.pairs).mean().item(),
        },
    }
    return _rounded(figures)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None  # strict JSON has no NaN
    return value
