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
    kernels = _centred_kernel(one), _centred_kernel(other)
    return _alignment(*kernels, torch.ones_like(kernels[0]))


def cknna(one: Tensor, other: Tensor, k: int = ALIGNED_NEIGHBOURS) -> float:
    """Mutual nearest-neighbour alignment (Huh et al. 2024, arXiv 2405.07987): CKA over pairs that are among each other's k nearest in both.

    With ``k = N - 1`` it is CKA without the diagonal.
    """
    kernels = _centred_kernel(one), _centred_kernel(other)
    near = [_nearest(kernel, k) for kernel in kernels]
    shared = _inner(*kernels, near[0] * near[1])
    own = _inner(kernels[0], kernels[0], near[0]) * _inner(kernels[1], kernels[1], near[1])
    return (shared / own.sqrt()).item()


def _centred_kernel(features: Tensor) -> Tensor:
    centred = features.double().flatten(1) - features.double().flatten(1).mean(0)
    return centred @ centred.T  # (N, N)


def _nearest(kernel: Tensor, k: int) -> Tensor:
    """1 where j is among the k images that are most alike to i, itself aside, by inner product: ``(N, N)``."""
    alike = kernel.clone().fill_diagonal_(-torch.inf)
    chosen = alike.topk(min(k, len(kernel) - 1), dim=1).indices
    return torch.zeros_like(kernel).scatter_(1, chosen, 1.0)


def _inner(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    return (one * other * mask).sum()


def _alignment(one: Tensor, other: Tensor, mask: Tensor) -> float:
    return (_inner(one, other, mask) / (_inner(one, one, mask) * _inner(other, other, mask)).sqrt()).item()


def _hits(guesses: np.ndarray, truth: Tensor) -> Tensor:
    return (torch.from_numpy(np.asarray(guesses)) == truth).double()
