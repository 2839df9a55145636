"""From raw target features to the space that the flow lives in: normalise to unit standard deviation, then project."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowprior.flow.projection import projection_matrix
from flowprior.precision import full_precision
from flowprior.training.randomness import stream_seed

STATISTICS_ROWS = 200_000
ROWS_AT_ONCE = 1 << 14


class TargetMap(nn.Module):
    """``x -> (x - mean) / std @ W``: mean per feature channel, one standard deviation for all, and a fixed projection.

    Args:
        mean: ``(d2,)``.
        std: scalar.
        matrix: ``(d2, d1)``.
    """

    def __init__(self, mean: Tensor, std: Tensor, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", torch.as_tensor(std).float())
        self.register_buffer("matrix", matrix.float())

    def forward(self, features: Tensor) -> Tensor:
        """``(..., d2) -> (..., d1)``; a ``ValueError`` for features of another width."""
        self.check_float32()
        if features.shape[-1] != len(self.mean):
            raise ValueError(
                f"this prior's target has {len(self.mean)} channels, the features have {features.shape[-1]}"
            )
        with full_precision(self.matrix.device):  # a target that is rounded is another one
            return (features.to(self.matrix) - self.mean) / self.std @ self.matrix

    def check_float32(self) -> None:
        """A ``ValueError`` where the prior that this is a part of was cast, which rounds what the target is."""
        if (dtype := self.matrix.dtype) != torch.float32:
            raise ValueError(f"this prior was cast to {dtype}: keep it in float32, and leave the rest to autocast")


@dataclass(frozen=True)
class TargetMapSettings:
    """How :func:`fit_target_map` goes about it.

    Attributes:
        channels: d1.
        projection: one of :data:`flowprior.flow.projection.PROJECTIONS`.
        centre: subtract the mean of every feature channel.
        seed: of the random projection, and of the rows that statistics are taken over.
    """

    channels: int = 32
    projection: str = "random"
    centre: bool = True
    seed: int = 0


def count_bad_rows(features: Tensor, part: int = 0, parts: int = 1) -> tuple[int, int]:
    """How many of the rows ``(N, d2)`` hold NaN, or what is infinite in float32, and the first of them; -1 where there is none.

    The table is read :data:`ROWS_AT_ONCE` rows at a time, of which ``part`` looks at every ``parts``-th.
    """
    count, first = 0, -1
    for start in range(part * ROWS_AT_ONCE, len(features), parts * ROWS_AT_ONCE):
        rows = features[start : start + ROWS_AT_ONCE].detach()
        if torch.isfinite(rows.float().sum()):
            continue
        # Or finite numbers have an infinite sum.
        bad = (~torch.isfinite(rows.float()).all(1)).nonzero()[:, 0]
        if len(bad):
            count, first = count + len(bad), start + int(bad[0]) if first < 0 else first
    return count, first


def fit_target_map(features: Tensor, settings: TargetMapSettings, looked_through: bool = False) -> TargetMap:
    """Measure mean and standard deviation of ``features (N, d2)``, on 200,000 random rows of larger sets, and form the projection.

    Args:
        features: on any device; gradients do not reach them.
        settings: see the class.
        looked_through: the caller knows that every row is finite; otherwise all are looked at here.

    Raises:
        ValueError: features that are not two-dimensional, not finite in every row, or constant.
    """
    features = features.detach()
    if features.dim() != 2 or features.shape[0] < 2:
        raise ValueError(f"target features have shape (N, d) with N of at least 2, not {tuple(features.shape)}")
    rows = features
    if len(features) > STATISTICS_ROWS:
        generator = torch.Generator().manual_seed(stream_seed(settings.seed, "target statistics"))
        rows = features[torch.randint(len(features), (STATISTICS_ROWS,), generator=generator)]
    if not looked_through:
        bad, first = count_bad_rows(features)
        if bad:
            raise ValueError(
                f"target features hold NaN or infinite values in {bad} of {len(features)} rows, first in row {first}"
            )
    rows = rows.double()
    mean = rows.mean(0) if settings.centre else torch.zeros(rows.shape[1], dtype=torch.float64)
    std = (rows - (mean if settings.centre else rows.mean())).square().mean().sqrt()
    if not std.float() > 0:
        raise ValueError("target features are constant: there is nothing to match")
    normalised = (rows - mean) / std if settings.projection == "pca" else None
    matrix = projection_matrix(
        settings.projection, rows.shape[1], settings.channels, features=normalised, seed=settings.seed
    )
    return TargetMap(mean, std, matrix)
