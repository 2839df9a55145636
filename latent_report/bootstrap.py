"""The uncertainty of every figure of the report: the bootstrap over images (Efron 1979), or random halves where none may come twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Statistic = Callable[[Tensor], Tensor | float]


class Estimate(NamedTuple):
    """A figure, or the figures along a curve, and their standard errors."""

    value: Tensor | float
    error: Tensor | float | None  # None where nobody can resample


def bootstrap(
    statistic: Statistic, count: int, resamples: int = 100, seed: int = 0, *, halves: bool = False
) -> Estimate:
    """The statistic of a sample and its standard error, the deviation over samples drawn from it with replacement.

    Images are what is drawn, never tokens, which depend on each other within an image. The value is that of the sample itself, since the
    mean over resamples of a statistic with a bias has that bias twice.

    Args:
        statistic: of image numbers int64 ``(n,)``, which may repeat; a number or a tensor.
        count: images in the sample.
        resamples: how many are drawn; 0: no error is estimated.
        seed: of the draws, which are the same for every figure of as many images.
        halves: draw half of the images without replacement: for statistics of neighbours, to which an image that comes twice is its own.
            The deviation over halves estimates the standard error of the whole as well, since ``1 / (N / 2) - 1 / N = 1 / N``.

    Raises:
        ValueError: there are fewer than two images, or one resample, whose deviation nobody knows.
    """
    if count < 2 or resamples == 1 or resamples < 0:
        raise ValueError(f"a bootstrap takes two images and two resamples, not {count} and {resamples}")
    value = statistic(torch.arange(count))
    if not resamples:
        return Estimate(_plain(value), None)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        if halves:
            return torch.randperm(count, generator=generator)[: count // 2]
        return torch.randint(count, (count,), generator=generator)

    draws = [statistic(draw()) for _ in range(resamples)]
    spread = torch.stack([torch.as_tensor(draw, dtype=torch.float64) for draw in draws]).std(0)
    return Estimate(_plain(value), _plain(spread))


def mean(values: Tensor) -> Estimate:
    """The mean over images of ``values (N, ...)`` and its standard error: :func:`bootstrap` of a mean with infinitely many resamples."""
    values = values.double()
    return Estimate(_plain(values.mean(0)), _plain(values.std(0, correction=0) / math.sqrt(len(values))))


def _plain(value: Tensor | float) -> Tensor | float:
    if torch.is_tensor(value) and value.dim() == 0:
        return value.item()
    return value
