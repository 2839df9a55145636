"""Maximum mean discrepancy: whether two samples come from one distribution, seen by a Gaussian kernel."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_mmd(a: Tensor, b: Tensor, bandwidth: float | None = None) -> float:
    """Unbiased estimate of the squared MMD (Gretton et al. 2012, Eq. 3) under ``exp(-|x - y|^2 / 2 bandwidth^2)``.

    Args:
        a, b: points ``(N, C)`` and ``(M, C)``; all pairwise distances are held at once.
        bandwidth: of the kernel; by default the median distance between points of ``b``.

    Returns:
        0 in expectation for samples of one distribution, so also below 0.

    Raises:
        ValueError: fewer than two points on a side, samples over different channels, or a bandwidth that is not above 0, as the
            median is where half of ``b``'s points coincide.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"two samples (N, C) and (M, C) of two points or more are compared, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = a.double(), b.double()
    within_b = torch.pdist(b)
    bandwidth = within_b.median().item() if bandwidth is None else bandwidth
    if not bandwidth > 0:
        raise ValueError(f"the kernel's bandwidth is above 0, not {bandwidth}: pass one where points coincide")

    def kernel(distance: Tensor) -> Tensor:
        return torch.exp(-distance.square() / (2 * bandwidth**2))

    return (kernel(torch.pdist(a)).mean() + kernel(within_b).mean() - 2 * kernel(torch.cdist(a, b)).mean()).item()
