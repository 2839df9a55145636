"""The sliced 2-Wasserstein distance between two samples: one number for how far two clouds of points lie apart."""

from __future__ import annotations

import torch
from torch import Tensor

SLICES_AT_ONCE = 32


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256, generator: torch.Generator | None = None) -> float:
    """``(E_w W_2(<a, w>, <b, w>)^2)^(1/2)`` over random unit vectors ``w``, in the units of the points.

    Along each direction the distance between the two empirical distributions is exact, ``W_2^2 = int_0^1 (A(u) - B(u))^2 du`` over
    their quantile functions, also where the samples differ in size (Bonneel et al. 2015). Two samples of one distribution are
    not at distance 0: compare with that floor.

    Args:
        a: points ``(N, C)``.
        b: points ``(M, C)``, on the same device.
        projections: how many directions.
        generator: draws the directions; without one they are the same in every call.

    Returns:
        NaN where a point is not finite.

    Raises:
        ValueError: samples that are empty or not over the same channels, or no direction.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or not a.numel() or not b.numel():
        raise ValueError(f"two samples (N, C) and (M, C) are compared, not {tuple(a.shape)} and {tuple(b.shape)}")
    if projections < 1:
        raise ValueError(f"projections is at least 1, not {projections}")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("nan")
    generator = generator or torch.Generator().manual_seed(0)
    directions = torch.randn(a.shape[1], projections, generator=generator, device=generator.device, dtype=torch.float64)
    directions = (directions / directions.norm(dim=0)).to(a.device, torch.promote_types(a.dtype, torch.float32))
    left, right, widths = _common_steps(len(a), len(b), a.device)
    total = 0.0
    for slices in directions.split(SLICES_AT_ONCE, dim=1):
        quantiles_a = (a.to(slices) @ slices).sort(dim=0).values  # (N, slices)
        quantiles_b = (b.to(slices) @ slices).sort(dim=0).values  # (M, slices)
        squares = (quantiles_a[left] - quantiles_b[right]).square()  # (steps, slices)
        total += (widths @ squares.double()).sum().item()
    return (total / projections) ** 0.5


def _common_steps(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The intervals of [0, 1) on which both quantile functions are constant: their rows in each sorted sample, and their widths."""
    # In units of 1 / (n m) every step of either function starts at a whole number.
    starts = torch.cat([torch.arange(n, device=device) * m, torch.arange(m, device=device) * n]).unique()  # (steps,)
    widths = torch.diff(starts, append=starts.new_tensor([n * m])).double() / (n * m)
    return starts // m, starts // n, widths
