"""How far latents lie from the target's samples: the kNN distance of the paper's Figure 4, with Faiss."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from flowprior.errors import UserError

CHUNK = 4096
NEIGHBOUR = 5  # k, where nobody asks for another


class KNNDensity:
    """An exact nearest-neighbour index over samples of the target distribution.

    The negative log-likelihood of ``y`` is, up to constants, ``d * log r_k(y)`` with ``r_k`` the Euclidean distance to the
    k-th nearest sample; what the paper plots is the mean of ``log r_k`` (arXiv 2506.05240, Section 5.2).

    Args:
        target: samples ``(M, d)`` of the target; kept as float32.
        k: which neighbour counts.
        max_points: of a larger target, a random subset of this size is indexed.
        seed: fixes that subset.

    Raises:
        UserError: when Faiss is not installed.
        ValueError: when the target is not ``(M, d)``, not finite, or has fewer than ``k`` samples.
    """

    def __init__(
        self, target: Tensor | np.ndarray, k: int = NEIGHBOUR, max_points: int = 100_000, seed: int = 0
    ) -> None:
        points = _matrix(target, "target")
        if len(points) > max_points:
            chosen = np.random.default_rng(seed).choice(len(points), max_points, replace=False, shuffle=False)
            points = points[np.sort(chosen)]
        if not 1 <= k <= len(points):
            raise ValueError(f"k must lie between 1 and the number of indexed samples, {len(points)}; got {k}")
        if not np.isfinite(points).all():
            raise ValueError("the target holds values that are not finite")
        self.k = k
        self.points = points
        self._faiss = _import_faiss()
        # Faiss expands the square, |a|^2 - 2ab + |b|^2: far from the origin it would choose wrong neighbours.
        self._centre = points.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._index = self._faiss.IndexFlatL2(points.shape[1])
        self._index.add(points - self._centre)
        # A distance below float32's resolution at the target's scale says "the same point", whose logarithm is minus infinity.
        scale = float(np.sqrt(np.square(points, dtype=np.float64).sum(axis=1).mean()))
        self.smallest_distance = max(scale * float(np.finfo(np.float32).eps), float(np.finfo(np.float32).tiny))

    def distance(self, y: Tensor | np.ndarray) -> np.ndarray:
        """``r_k`` of every row of ``y (N, d)``, float64 ``(N,)``, not below ``smallest_distance``.

        Where ``y`` is itself an indexed sample it is its own first neighbour, at distance 0: ``r_k`` then is the distance to the
        (k - 1)-th other sample, so ask for ``k + 1`` to compare with fresh points.
        """
        queries = _matrix(y, "y")
        if queries.shape[1] != self.points.shape[1]:
            raise ValueError(f"y has {queries.shape[1]} dimensions and the target {self.points.shape[1]}")
        # Faiss brings an OpenMP runtime of its own, which does not see the limit that torch or a launcher has set.
        self._faiss.omp_set_num_threads(torch.get_num_threads())
        parts = [self._distance(queries[start : start + CHUNK]) for start in range(0, len(queries), CHUNK)]
        return np.concatenate(parts) if parts else np.zeros(0)

    def log_distance(self, y: Tensor | np.ndarray) -> float:
        """Mean of ``log r_k`` over the rows of ``y (N, d)``; see :meth:`distance`. NaN where ``y`` is not finite or empty."""
        queries = _matrix(y, "y")
        if len(queries) == 0 or not np.isfinite(queries).all():
            return float("nan")
        return float(np.log(self.distance(queries)).mean())

    def _distance(self, queries: np.ndarray) -> np.ndarray:
        _, neighbours = self._index.search(queries - self._centre, self.k)  # (n, k)
        # The same expansion loses small distances; only Faiss's choice of neighbours is used.
        squares = np.empty(neighbours.shape)
        for column, indices in enumerate(neighbours.T):
            squares[:, column] = np.square(queries.astype(np.float64) - self.points[indices]).sum(axis=1)
        return np.maximum(np.sqrt(squares.max(axis=1)), self.smallest_distance)  # (n,)


def _matrix(values: Tensor | np.ndarray, name: str) -> np.ndarray:
    if torch.is_tensor(values):
        values = values.detach().to("cpu", torch.float32).numpy()
    values = np.ascontiguousarray(values, dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"{name} must have two dimensions, (N, d), got {values.shape}")
    return values


def _import_faiss() -> ModuleType:
    try:
        import faiss
    except ImportError:
        raise UserError("the kNN distance needs Faiss: pip install faiss-cpu") from None
    return faiss
