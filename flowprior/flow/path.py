"""The straight path between noise and data. Nobody else in the project interpolates by hand."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PathSample(NamedTuple):
    """A point on the path from noise (t = 0) to data (t = 1), and the velocity of the path there."""

    x_t: Tensor  # (..., C)
    velocity: Tensor  # (..., C)


def path_sample(noise: Tensor, data: Tensor, t: Tensor) -> PathSample:
    """``x_t = (1 - t) x0 + t x1`` and its velocity ``x1 - x0``; ``t`` broadcasts against the leading dimensions."""
    t = t.reshape((1,) * (data.dim() - 1 - t.dim()) + t.shape).unsqueeze(-1).to(data.dtype)  # (..., 1)
    return PathSample((1 - t) * noise + t * data, data - noise)


def group_size_for(count: int, wanted: int) -> int:
    """The largest divisor of ``count`` that is at most ``wanted``: the size of the groups that share a time."""
    if count < 1:
        raise ValueError("there are no tokens to take the loss of")
    return next(size for size in range(min(max(wanted, 1), count), 0, -1) if count % size == 0)
