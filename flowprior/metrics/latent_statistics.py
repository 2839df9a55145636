"""How latents vary over their places: shares of variance, spectrum, total variation, autocorrelation (SimFlow, arXiv 2512.04084, compares
autoencoders by such).

Latents are ``(N, *places, C)``: ``(N, T, C)`` for a sequence of tokens, ``(N, H, W, C)`` for a map. What is looked at is how images differ:
the mean over images is taken off at every place first, since learned tokens have offsets of their own that say nothing of an image. Nothing
here depends on the latents' scale, and all is exact for given latents: no draw, no window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


def power_spectrum(latents: Tensor) -> Tensor:
    """Share of each frequency in the latents' power, ``(*places)`` in the order of :func:`torch.fft.fftfreq`, summing to one.

    Every channel of every image is a signal over places. What is the same at all of them, frequency zero, is left out and has share 0. Power
    is averaged over images and channels. White noise has equal shares.

    Raises:
        ValueError: fewer than two images or places, or images whose latents differ in what is the same at all places only.
    """
    signals = _differences(latents).movedim(-1, 1)  # (N, C, *places)
    power = torch.fft.fftn(signals, dim=tuple(range(2, signals.dim()))).abs().square().mean((0, 1))  # (*places)
    everything = power.sum()
    power.view(-1)[0] = 0
    if not power.sum() > 1e-12 * everything:
        raise ValueError("the latents are alike at all places: they have no spectrum")
    return power / power.sum()


def spectral_entropy(latents: Tensor) -> float:
    """Entropy of :func:`power_spectrum` over that of white noise: 1 where all frequencies have equal power, 0 where one alone has any."""
    shares = power_spectrum(latents).flatten()
    if len(shares) < 3:
        return 1.0  # two places have one frequency
    entropy = -torch.special.xlogy(shares, shares).sum().item()
    return entropy / math.log(len(shares) - 1)


def high_frequency_ratio(latents: Tensor) -> float:
    """Share of the power at more than a quarter of a cycle per place, in some direction: half of the highest frequency there is.

    White noise has the share of such frequencies among all: 3 / 7 for 8 tokens.
    """
    shares = power_spectrum(latents)
    axes = [torch.fft.fftfreq(size, device=shares.device).abs() for size in shares.shape]
    highest = torch.stack(torch.meshgrid(*axes, indexing="ij")).amax(0)  # (*places)
    return shares[highest > 0.25].sum().item()


def total_variation(latents: Tensor) -> float:
    """Mean absolute difference of neighbouring places, in units of each channel's standard deviation over images and places.

    Independent Gaussian places have ``2 / sqrt(pi)``, equal ones 0. A channel that never varies is left out.
    """
    latents = _differences(latents)
    std = latents.flatten(0, -2).square().mean(0).sqrt()  # (C,)
    scaled = latents[..., std > 0] / std[std > 0]
    return torch.stack([scaled.diff(dim=d).abs().mean() for d in range(1, latents.dim() - 1)]).mean().item()


def autocorrelation(latents: Tensor) -> Tensor:
    """Correlation of a channel at two places of an image by their distance, ``(L,)`` for distances 0 to L - 1 of the shortest direction.

    The mean of ``z_i z_{i+k}`` over the root of the means of ``z_i^2`` and ``z_{i+k}^2`` at the same pairs, over images, channels and places
    i, then over directions: within [-1, 1] also where some places vary more than others. Entry 0 is 1; independent places have 0 elsewhere.

    Raises:
        ValueError: fewer than two images or places, or images that are all alike.
    """
    centred = _differences(latents)
    if not centred.square().mean() > 0:
        raise ValueError("the latents are constant: they have no autocorrelation")
    directions = range(1, centred.dim() - 1)
    distances = range(min(centred.shape[d] for d in directions))
    found = [[_correlation_at(centred, d, distance) for d in directions] for distance in distances]
    return torch.tensor(found, dtype=torch.float64).mean(1)


def _correlation_at(centred: Tensor, direction: int, distance: int) -> float:
    """0 where one side of all pairs never varies."""
    pairs = centred.shape[direction] - distance
    near, far = centred.narrow(direction, 0, pairs), centred.narrow(direction, distance, pairs)
    power = (near.square().mean() * far.square().mean()).sqrt()
    return ((near * far).mean() / power).item() if power > 0 else 0.0


class VarianceShares(NamedTuple):
    """Where the variance of latents lies; the three sum to 1."""

    images: float  # between images, alike for all their tokens
    tokens: float  # between tokens, alike for all images
    within: float  # what is left: a token's own in its image


def variance_shares(latents: Tensor) -> VarianceShares:
    """The analysis of variance of ``z = place's mean + image + rest`` (Fisher 1925), over ``(N, *places, C)`` and summed over channels.

    Images are a sample and places are all that there are. Each component is the unbiased estimate from the mean squares, so that the part
    between images is the mean covariance of two different tokens of an image: 0 where tokens are independent, not the 1 / T of the variance
    that means of T tokens have, and below 0 where tokens of an image repel each other. The part between places is free of what the
    means of N images vary by.

    Raises:
        ValueError: fewer than two images or places, or latents that are all alike.
    """
    z = _differences(latents).flatten(1, -2)  # (N, T, C), less each place's mean
    count, tokens, _ = z.shape
    everything = latents.double().flatten(0, -2)
    of_means = z.mean(1)  # (N, C)
    between_images = tokens * of_means.square().sum() / (count - 1)  # mean squares
    rest = (z - of_means.unsqueeze(1)).square().sum() / ((count - 1) * (tokens - 1))
    offsets = everything.var(0, correction=0).sum() - z.square().sum() / (count * tokens)
    images, places = (between_images - rest) / tokens, offsets - rest * (tokens - 1) / (tokens * count)
    total = (images + places + rest).item()
    if not total > 0:
        raise ValueError("the latents are all alike: they have no variance")
    return VarianceShares(*(part / total for part in (images.item(), places.item(), rest.item())))


def midpoints(latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Half-way points ``(N, ...)`` between every latent and that of another image, and which ``(N,)`` those are.

    The other image of image i is drawn as the next one in a random cycle through all: never itself, and each is another's once.

    Raises:
        ValueError: there is only one image.
    """
    if len(latents) < 2:
        raise ValueError("a midpoint has two ends: pass two images or more")
    cycle = torch.randperm(len(latents), generator=generator)
    other = torch.empty_like(cycle)
    other[cycle] = cycle.roll(-1)
    return (latents + latents[other.to(latents.device)]) / 2, other


def _differences(latents: Tensor) -> Tensor:
    """The latents less their mean over images, in float64."""
    if latents.dim() < 3 or latents[0, ..., 0].numel() < 2 or len(latents) < 2:
        raise ValueError(
            f"expected latents (N, places, C) of two images and places or more, got {tuple(latents.shape)}"
        )
    latents = latents.double()
    return latents - latents.mean(0)
