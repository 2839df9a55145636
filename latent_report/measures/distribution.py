"""How latents are spread: deviations, rank, tails, distance to a Gaussian, and where their variance lies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.metrics.sliced_wasserstein import sliced_wasserstein

POINTS = 20_000  # tokens, at most, that a sliced distance is taken of


def normalised(latents: Tensor) -> Tensor:
    """``(N, T, C)`` with each channel's mean at 0 and one deviation of 1 for all, as a generator gets them.

    One scale for all channels leaves their shape as it is: whatever follows depends on the latents up to shift and scale.

    Raises:
        ValueError: the latents are constant.
    """
    centred = latents.double() - latents.double().mean((0, 1))
    deviation = centred.square().mean().sqrt()
    if not deviation > 1e-12:
        raise ValueError("the latents are constant: there is nothing to measure")
    return (centred / deviation).float()


def channel_deviations(latents: Tensor) -> Tensor:
    """Standard deviation of each channel over images and tokens, ``(C,)``."""
    return latents.double().flatten(0, 1).std(0, correction=0)


def spectrum(points: Tensor) -> Tensor:
    """Shares of the principal axes in the variance of ``points (n, d)``, ``(d,)``, descending, with sum 1."""
    eigenvalues = torch.linalg.eigvalsh(torch.cov(points.double().T, correction=0).reshape(points.shape[1], -1))
    eigenvalues = eigenvalues.flip(0).clamp(min=0)
    return eigenvalues / eigenvalues.sum()


def effective_rank(points: Tensor) -> float:
    """``exp`` of the entropy of :func:`spectrum` (Roy and Vetterli 2007): d where all axes have equal variance, 1 where one has all."""
    shares = spectrum(points)
    return torch.exp(-torch.special.xlogy(shares, shares).sum()).item()


def excess_kurtosis(latents: Tensor) -> float:
    """``E z^4 - 3`` of a channel in units of its own deviation, averaged over channels: 0 of a Gaussian, -1.2 of a uniform one.

    A channel that never varies is left out.
    """
    tokens = latents.double().flatten(0, 1)
    centred = tokens - tokens.mean(0)
    variance = centred.square().mean(0)  # (C,)
    alive = variance > 1e-12 * variance.max()
    return (centred[:, alive].pow(4).mean(0) / variance[alive].square() - 3).mean().item()


class Distance(NamedTuple):
    """A sliced Wasserstein distance, and that of as many points of the reference itself."""

    value: float
    floor: float


def gaussian_distance(points: Tensor, seed: int = 0) -> Distance:
    """Sliced 2-Wasserstein distance of normalised tokens ``(n, C)`` from N(0, I), and its floor: two samples of N(0, I) of this size.

    A Gaussian of deviations ``s`` along a direction is at distance ``|s - 1|`` in it.
    """
    generator = torch.Generator().manual_seed(seed)
    if len(points) > POINTS:
        points = points[torch.randperm(len(points), generator=generator)[:POINTS]]
    reference, other = torch.randn(2, *points.shape, generator=generator)
    return Distance(sliced_wasserstein(points, reference), sliced_wasserstein(other, reference))


class VarianceShares(NamedTuple):
    """Where the variance of latents lies; the three sum to 1."""

    images: float  # between images, alike for all their tokens
    tokens: float  # between tokens, alike for all images
    within: float  # what is left: a token's own in its image


def variance_shares(latents: Tensor) -> VarianceShares:
    """The two-way analysis of variance of ``z = mean + image + token + rest`` (Fisher 1925), over ``(N, T, C)`` and summed over channels."""
    centred = latents.double() - latents.double().mean((0, 1))
    images = centred.mean(1).square().sum(-1).mean()
    tokens = centred.mean(0).square().sum(-1).mean()
    total = centred.square().sum(-1).mean()
    shares = images / total, tokens / total
    return VarianceShares(shares[0].item(), shares[1].item(), (1 - shares[0] - shares[1]).item())
