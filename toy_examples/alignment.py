"""L_align at single points of the plane, and how it goes with the negative log-likelihood."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowprior.flow.path import path_sample

EVALUATIONS_AT_ONCE = 1 << 15


@torch.no_grad()
def alignment_at(velocity: Callable[[Tensor, Tensor], Tensor], points: Tensor, pairs: int = 64) -> Tensor:
    """Eq. 5 per channel at each of ``points (N, 2)``, ``(N,)`` float32.

    All points meet the same scrambled Sobol set of (t, noise), so that what is left of the estimate's error is smooth
    over the plane and common to the steps of an optimisation.
    """
    uniform = (
        torch.quasirandom.SobolEngine(1 + points.shape[-1], scramble=True, seed=0).draw(pairs).clamp(1e-6, 1 - 1e-6)
    )
    uniform = uniform.to(points.device)
    t, noise = uniform[:, :1], torch.special.ndtri(uniform[:, None, 1:])  # (P, 1), (P, 1, 2)
    total = torch.zeros(len(points), device=points.device)
    at_once = max(1, EVALUATIONS_AT_ONCE // len(points))
    for times, noises in zip(t.split(at_once), noise.split(at_once)):
        path = path_sample(noises.expand(-1, len(points), -1), points.expand(len(times), -1, -1), times)
        total += (velocity(path.x_t, times) - path.velocity).square().mean(-1).sum(0)
    return total / pairs


def pearson(a: Tensor, b: Tensor) -> float:
    """Correlation of two ``(N,)`` series; NaN when one of them is constant."""
    return torch.corrcoef(torch.stack([a.double().cpu(), b.double().cpu()]))[0, 1].item()


def spearman(a: Tensor, b: Tensor) -> float:
    """Correlation of the ranks of two ``(N,)`` series without ties."""
    return pearson(a.argsort().argsort(), b.argsort().argsort())
