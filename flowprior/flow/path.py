"""The straight path between noise and data, and the noise and times at which a loss meets it. Nobody else interpolates by hand."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.training.randomness import StepRandom, stratified_uniform


class PathSample(NamedTuple):
    """A point on the path from noise (t = 0) to data (t = 1), and the velocity of the path there."""

    x_t: Tensor  # (..., C)
    velocity: Tensor  # (..., C)


def path_sample(noise: Tensor, data: Tensor, t: Tensor) -> PathSample:
    """``x_t = (1 - t) x0 + t x1`` and its velocity ``x1 - x0``; ``t`` broadcasts against the leading dimensions."""
    t = t.reshape((1,) * (data.dim() - 1 - t.dim()) + t.shape).unsqueeze(-1).to(data.dtype)  # (..., 1)
    return PathSample((1 - t) * noise + t * data, data - noise)


class PathDraw(NamedTuple):
    """The noise and times of P pairs for each of n tokens; ``size`` neighbouring tokens share a time."""

    noise: Tensor  # x0, (..., P, n, C)
    t: Tensor  # (..., P, n / size), or (..., 1, n / size) where the pairs of a token share it

    def sample(self, data: Tensor) -> PathSample:
        """The path at every token of ``data (..., n, C)``, in groups that share a time: ``(..., P, n / size, size, C)``.

        Raises:
            ValueError: ``data`` holds no token.
        """
        if not data.numel():
            raise ValueError("there are no tokens to take the loss of")
        data = self.grouped(torch.atleast_2d(data.float())).unsqueeze(-4)  # (..., 1, n / size, size, C)
        return path_sample(self.grouped(self.noise), data, self.t.unsqueeze(-1))

    def grouped(self, tokens: Tensor) -> Tensor:
        """``tokens (..., n, K)`` as ``(..., n / size, size, K)``."""
        groups = self.t.shape[-1]
        return tokens.unflatten(-2, (groups, self.noise.shape[-2] // groups))


def draw_path(
    tokens: Tensor, *, pairs: int = 1, group_size: int = 1, generator: torch.Generator | None = None
) -> PathDraw:
    """Noise and stratified times for ``tokens (..., n, C)``.

    Args:
        tokens: only their shape and device count.
        pairs: (t, noise) pairs P that each token is drawn with.
        group_size: how many neighbouring tokens share a time (1: every token has its own, as in the paper). Sharing spares the
            network the modulation, most of its arithmetic, and leaves a loss's expectation as it is. Reduced to a divisor of ``n``.
        generator: for both, on the tokens' device.
    """
    *lead, n, channels = torch.atleast_2d(tokens).shape
    noise = torch.randn(*lead, pairs, n, channels, generator=generator, device=tokens.device)
    shape = torch.Size((*lead, pairs, n // group_size_for(n, group_size)))
    return PathDraw(noise, stratified_uniform(shape.numel(), generator, tokens.device).view(shape))


def draw_path_of_step(
    random: StepRandom,
    tokens: Tensor,
    *,
    pairs: int = 1,
    group_size: int = 1,
    pairs_share_time: bool = False,
    name: str = "",
) -> PathDraw:
    """:func:`draw_path` of a training step, for ``tokens (B, n, C)`` by their places in the global batch.

    Args:
        random: of the micro-batch.
        tokens, pairs, group_size: as there.
        pairs_share_time: the pairs of a token differ in their noise alone, which comes in twos of opposite sign. Each is as normal as the
            other, so that the expectation stays; but the gradient loses about as much variance as the shared times bring in.
        name: tells this draw from others of the step.
    """
    batch, n, channels = tokens.shape
    groups = n // group_size_for(n, group_size)
    drawn, times = ((pairs + 1) // 2, 1) if pairs_share_time else (pairs, pairs)
    noise = random.normal(f"{name} noise".lstrip(), batch, drawn, n, channels)
    if pairs_share_time:
        noise = torch.cat([noise, -noise], dim=1)[:, :pairs]  # (B, P, n, C)
    return PathDraw(noise, random.times(f"{name} t".lstrip(), batch, times, groups))


def group_size_for(count: int, wanted: int) -> int:
    """The largest divisor of ``count`` that is at most ``wanted``: the size of the groups that share a time."""
    if count < 1:
        raise ValueError("there are no tokens to take the loss of")
    return next(size for size in range(min(max(wanted, 1), count), 0, -1) if count % size == 0)
