"""How latents are spread: deviations, rank, tails, and distance to a Gaussian."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from flowprior.metrics.sliced_wasserstein import sliced_wasserstein

POINTS = 20_000  # tokens, at most, that a sliced distance is taken of


def normalised(latents: Tensor) -> Tensor:
    """``(N, T, C)`` with each channel's mean at 0 and one deviation of 1 for all: the report's own frame.

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
    """``exp`` of the entropy of :func:`spectrum`: d where all axes have equal variance, 1 where one has all.

    It is the effective rank (Roy and Vetterli 2007) of the covariance. That of the data, which RankMe takes, has the entropy of deviations
    in place of variances, and is larger.
    """
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


def some_tokens(latents: Tensor, most: int = POINTS, seed: int = 0) -> Tensor:
    """At most ``most`` tokens of ``(N, T, C)``, as many of every image, drawn from its own, ``(n, t, C)``; of more images than that, some."""
    if len(latents) * latents.shape[1] <= most:
        return latents
    generator = torch.Generator().manual_seed(seed)
    images = torch.randperm(len(latents), generator=generator)[:most].sort().values
    drawn = torch.rand(len(images), latents.shape[1], generator=generator).argsort(1)[:, : most // len(images)]
    return latents[images.unsqueeze(1), drawn]


def white_noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A sample of N(0, I) that depends on shape and seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gaussian_floor(reference: Tensor, seed: int = 0, samples: int = 5) -> tuple[float, float]:
    """How far other samples of N(0, I) are from ``reference (n, C)``, of as many points: the mean sliced distance and its deviation."""
    others = (white_noise(reference.shape, seed + 1 + place) for place in range(samples))
    distances = [sliced_wasserstein(other, reference) for other in others]
    return statistics.fmean(distances), statistics.stdev(distances)
