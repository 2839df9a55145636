"""The numbers of a toy run: how L_align goes with the NLL, where latents and prior samples lie, and what the theory's terms are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowprior.flow.likelihood import alignment_per_token, elbo_terms, log_prob
from flowprior.flow.path import path_sample
from flowprior.flow.solver import sample
from flowprior.metrics.mmd import squared_mmd
from flowprior.metrics.sliced_wasserstein import sliced_wasserstein
from flowprior.training.randomness import stream_seed
from toy_examples.config import DensityConfig, MapConfig
from toy_examples.correlation import pearson, spearman
from toy_examples.density import NLL, kernel_estimate
from toy_examples.distributions import GaussianMixture, ToyDistribution
from toy_examples.exact_velocity import exact_velocity
from toy_examples.flow_stage import CHANNELS, FrozenFlow
from toy_examples.latent_stage import AlignedLatents
from toy_examples.maps import PlaneMaps

TESTED_POINTS = 500  # of each kind, in the comparison with exact densities
LEVEL_POINTS = 2000
ODE_TOLERANCE = 1e-5  # an error of some 0.01 nats on the rings, whose velocity is the steepest, and of less elsewhere
VELOCITY_POINTS = 20_000
MMD_POINTS = 2000
FLOOR_DRAWS = 10
KDE_POINTS = 2000
MODE_RADIUS = 3.0  # noise standard deviations
COVERED_SHARE = 0.2  # of an equal share


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(0, name))


def prior_samples(flow: FrozenFlow, count: int, device: torch.device) -> Tensor:
    """``(count, 2)`` samples of the frozen flow, on the CPU."""
    generator = torch.Generator(device).manual_seed(stream_seed(0, "prior samples"))
    return sample(flow.velocity, (count, CHANNELS), steps=50, generator=generator, device=device).cpu()


def correlations(alignment: Tensor, along: Tensor, maps: PlaneMaps, config: MapConfig) -> dict[str, Any]:
    """L_align against NLL: ``alignment`` and ``along``, both ``(S,)``, in the course of the optimisation, and the maps over the grid."""
    grid_alignment, grid_nll = maps.alignment.flatten(), maps.nll.flatten()
    return {
        "along_optimisation": {
            "pearson": pearson(alignment, along),
            "spearman": spearman(alignment, along),
            "records": len(along),
        },
        "over_grid": {
            "pearson": pearson(grid_alignment, grid_nll.clamp(max=config.nll_clip)),
            "spearman": spearman(grid_alignment, grid_nll),
            "nll_clip_of_pearson": config.nll_clip,
            "region": [-config.half_width, config.half_width],
            "points_per_side": config.grid,
        },
    }


def levels(
    flow: FrozenFlow, latents: AlignedLatents, data: Tensor, nll: NLL, pairs: int, device: torch.device
) -> dict[str, Any]:
    """Mean NLL (nats) and mean L_align (per channel) of latents before and after, and of data."""

    def alignment(points: Tensor) -> float:
        return (
            alignment_per_token(flow.velocity, points[:LEVEL_POINTS].to(device), pairs=pairs).mean().item() / CHANNELS
        )

    clouds = {"latents_before": latents.start, "latents_after": latents.end, "data": data}
    return {
        "nll": {name: nll(points).mean().item() for name, points in clouds.items()},
        "alignment": {name: alignment(points) for name, points in clouds.items()},
    }


def distances(target: ToyDistribution, data: Tensor, clouds: dict[str, Tensor]) -> dict[str, Any]:
    """How far each cloud lies from ``data``; a fresh sample of the data, as large as the first cloud, is the floor, on average over
    ``FLOOR_DRAWS`` of them: one alone may be half or twice as far."""
    count, generator = len(next(iter(clouds.values()))), _generator("fresh data")
    fresh = [target.sample(count, generator) for _ in range(FLOOR_DRAWS)]

    def with_floor(distance: Callable[[Tensor], float]) -> dict[str, float]:
        floor = statistics.fmean(distance(sample) for sample in fresh)
        return {name: distance(points) for name, points in clouds.items()} | {"fresh_data": floor}

    return {
        "sliced_wasserstein": with_floor(lambda points: sliced_wasserstein(points, data)),
        "squared_mmd": with_floor(lambda points: squared_mmd(points[:MMD_POINTS], data[:MMD_POINTS])),
    }


def mode_shares(target: GaussianMixture, points: Tensor) -> dict[str, float]:
    """Which of a mixture's modes have points.

    Returns:
        ``covered``, the share of modes within three noise standard deviations of which lies at least a fifth of an equal share of
        the points; ``largest``, the share of points whose nearest mode is the most frequent one (1 / K for an even spread).
    """
    distance = torch.cdist(points.double(), target.nodes / target.std)  # (N, K)
    modes = distance.shape[1]
    near = (distance < MODE_RADIUS * target.noise_std / target.std).double().mean(0)  # (K,)
    nearest = torch.bincount(distance.argmin(1), minlength=modes).double() / len(points)
    return {"covered": (near >= COVERED_SHARE / modes).double().mean().item(), "largest": nearest.max().item()}


@torch.no_grad()
def velocity_error(flow: FrozenFlow, target: ToyDistribution, device: torch.device) -> float:
    """Relative L2 distance of the flow's velocity from the closed form, averaged over the path's distribution."""
    generator = _generator("velocity error")
    noise = torch.randn(VELOCITY_POINTS, CHANNELS, generator=generator)
    t = torch.rand(VELOCITY_POINTS, generator=generator)
    x_t = path_sample(noise, target.sample(VELOCITY_POINTS, generator), t).x_t
    exact = exact_velocity(target)(x_t.double(), t)
    found = flow.velocity(x_t.to(device), t.to(device)).cpu()
    return ((found - exact).square().sum() / exact.square().sum()).sqrt().item()


def likelihoods(
    flow: FrozenFlow, target: ToyDistribution, clouds: dict[str, Tensor], pairs: int, device: torch.device
) -> dict[str, Any]:
    """The flow's own log-density against the exact one, and the bound of Proposition 1.

    Returns:
        ``log_prob_error``: mean absolute difference (nats) for each cloud. ``bound``: ``smallest_lambda``, from which on
        ``log p(y) >= E log p0 + C(y) - lambda L_align(y)``, with the flow's own p and L_align summed over channels, holds at every
        tested point; ``mean_gap`` and ``largest_gap``, the differences of the sides there; and how many ``points`` were tested.
    """
    points = {name: cloud[:TESTED_POINTS].to(device) for name, cloud in clouds.items()}
    tolerance = {"rtol": ODE_TOLERANCE, "atol": ODE_TOLERANCE}
    found = {name: log_prob(flow.velocity, cloud, **tolerance) for name, cloud in points.items()}
    errors = {
        name: (found[name].cpu().double() - target.log_density(points[name])).abs().mean().item() for name in points
    }
    everything = torch.cat(list(points.values()))
    terms = elbo_terms(flow.velocity, everything, pairs=pairs)
    # What lambda L_align has to make up for.
    short = terms.constant + terms.correction - torch.cat(list(found.values()))
    smallest = max(0.0, (short / terms.alignment).max().item())
    gap = smallest * terms.alignment - short
    return {
        "log_prob_error": errors,
        "bound": {
            "smallest_lambda": smallest,
            "mean_gap": gap.mean().item(),
            "largest_gap": gap.max().item(),
            "points": len(everything),
        },
    }


def kde_error(target: ToyDistribution, config: DensityConfig, points: Tensor) -> dict[str, float]:
    """Mean absolute error (nats) of the paper's kernel estimate at ``points``."""
    points = points[:KDE_POINTS]
    error = (kernel_estimate(target, config)(points) - target.log_density(points)).abs().mean().item()
    return {"mean_absolute_error": error, "bandwidth": config.kde_bandwidth, "samples": config.kde_samples}


def rounded(value: Any) -> Any:
    """``value`` for strict JSON: five digits, and None where a number is not finite."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
