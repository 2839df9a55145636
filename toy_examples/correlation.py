"""How two series go together."""

from __future__ import annotations

import torch
from scipy.stats import rankdata
from torch import Tensor


def pearson(a: Tensor, b: Tensor) -> float:
    """Correlation of two ``(N,)`` series; NaN when one of them is constant."""
    return torch.corrcoef(torch.stack([a.double().cpu(), b.double().cpu()]))[0, 1].item()


def spearman(a: Tensor, b: Tensor) -> float:
    """Correlation of the ranks of two ``(N,)`` series; ties share their mean rank."""
    return pearson(*(torch.from_numpy(rankdata(series.cpu())) for series in (a, b)))
