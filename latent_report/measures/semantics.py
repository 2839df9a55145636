"""What latents know of what images show: classes by neighbours and by a linear probe, and likeness to another network's features."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

NEIGHBOURS = 20  # of the classifier
ALIGNED_NEIGHBOURS = 10  # of CKNNA


def neighbour_hits(train: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Whether the majority of the k nearest of ``train (M, d)`` has the class of a query, float ``(Q,)``; Euclidean distance."""
    from sklearn.neighbors import KNeighborsClassifier

    classifier = KNeighborsClassifier(min(k, len(train))).fit(train.numpy(), labels.numpy())
    return _hits(classifier.predict(queries.numpy()), truth)


def probe_hits(train: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, steps: int = 300) -> Tensor:
    """Whether logistic regression, trained on ``train (M, d)`` in units of each dimension's deviation, knows a query's class, float ``(Q,)``."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = train.mean(0), train.std(0).clamp(min=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe of a stated length, not the optimum
        probe = LogisticRegression(max_iter=steps).fit(((train - mean) / std).numpy(), labels.numpy())
    return _hits(probe.predict(((queries - mean) / std).numpy()), truth)


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment (Kornblith et al. 2019, Eq. 3) of features ``(N, d)`` and ``(N, e)`` of the same images, in [0, 1].

    1 where one is a rotation and scaling of the other; it depends on neither.
    """
    k, m = _centred_kernel(one), _centred_kernel(other)
    return ((k * m).sum() / (k.square().sum() * m.square().sum()).sqrt()).item()


def cknna(one: Tensor, other: Tensor, k: int = ALIGNED_NEIGHBOURS) -> float:
    """Alignment of nearest neighbours (Huh et al. 2024, arXiv 2405.07987), as its authors compute it.

    Each feature has unit length, so that the kernels ``(N, N)`` are cosines. Of a pair (i, j) they count where j is among the k nearest of
    i in both, and the masked kernels are compared by the unbiased HSIC, over the root of that of each with itself. 1 of features with
    themselves, about 0 of independent ones.
    """
    kernels = [_cosines(features) for features in (one, other)]
    near = [_nearest(kernel, k) for kernel in kernels]
    both = near[0] * near[1]
    shared = unbiased_hsic(kernels[0] * both, kernels[1] * both)
    own = [unbiased_hsic(kernel * mask, kernel * mask) for kernel, mask in zip(kernels, near)]
    return (shared / (own[0] * own[1]).sqrt()).item()


def unbiased_hsic(one: Tensor, other: Tensor) -> Tensor:
    """Of two kernels ``(N, N)`` over the same samples, whose diagonals are passed over (Song et al. 2012, JMLR 13); N is at least 4."""
    count = len(one)
    k, m = (kernel - torch.diag(kernel.diagonal()) for kernel in (one, other))
    crossed = (k.sum(0) * m.sum(1)).sum()  # 1' k m 1
    total = (k * m.T).sum() + k.sum() * m.sum() / ((count - 1) * (count - 2)) - 2 * crossed / (count - 2)
    return total / (count * (count - 3))


def _centred_kernel(features: Tensor) -> Tensor:
    centred = features.double().flatten(1) - features.double().flatten(1).mean(0)
    return centred @ centred.T  # (N, N)


def _cosines(features: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(features.double().flatten(1), dim=1)
    return unit @ unit.T  # (N, N)


def _nearest(kernel: Tensor, k: int) -> Tensor:
    """1 where j is among the k images that are most alike to i, itself aside: ``(N, N)``."""
    alike = kernel.clone().fill_diagonal_(-torch.inf)
    chosen = alike.topk(min(k, len(kernel) - 1), dim=1).indices
    return torch.zeros_like(kernel).scatter_(1, chosen, 1.0)


def _hits(guesses: np.ndarray, truth: Tensor) -> Tensor:
    return (torch.from_numpy(np.asarray(guesses)) == truth).double()
