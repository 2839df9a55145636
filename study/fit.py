"""A linear model of a few figures, chosen by its error on groups that are left out."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np

MOST_FIGURES = 3
GAIN = 0.9  # a further figure has to bring the error below so much of what it is without
LEAST_APART = 1e-3  # determinant of the figures' correlations (about 0) below which they say the same
NOT_SINGULAR = 1e-10  # of the squares' sum, added where a group that is left out holds all that a figure varies


class Choice(NamedTuple):
    """The chosen columns, and their root mean square error on groups that were left out, one after the other."""

    columns: tuple[int, ...]
    error: float


def least_squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients ``(k,)`` of ``y (n,)`` on ``x (n, k)``, without intercept."""
    return np.linalg.lstsq(x, y, rcond=None)[0]


def choose(x: np.ndarray, y: np.ndarray, groups: np.ndarray, most: int = MOST_FIGURES) -> Choice:
    """The columns of ``x (n, d)`` whose least squares predict ``y (n,)`` best where a whole group of ``groups (n,)`` is left out.

    All sets of up to ``most`` columns are tried; a larger one counts where it lowers the error by more than a tenth for each column more.
    """
    best = Choice((), float(np.sqrt(np.mean(y**2))))  # no figure: every ratio is 1
    for size in range(1, min(most, x.shape[1]) + 1):
        sets = np.array(list(combinations(range(x.shape[1]), size)))
        errors = left_out_errors(x, y, groups, sets)
        place = int(np.argmin(errors))
        if errors[place] < GAIN ** (size - len(best.columns)) * best.error:
            best = Choice(tuple(int(column) for column in sets[place]), float(errors[place]))
    return best


def left_out_errors(x: np.ndarray, y: np.ndarray, groups: np.ndarray, sets: np.ndarray) -> np.ndarray:
    """Root mean square errors ``(s,)`` of every one of ``sets (s, k)`` of columns, each group predicted by the others.

    The normal equations of all sets are solved together, once for every group. A set whose columns say the same has an infinite error, and so
    has one with a column that is 0 in every row.
    """
    sizes = np.sqrt(np.mean(x**2, axis=0))
    x = x / np.where(sizes > 0, sizes, 1.0)  # a column of zeros stays one, and the determinant of its sets is 0
    rows, columns = sets[:, :, None], sets[:, None, :]
    squares, products = x.T @ x, x.T @ y  # (d, d), (d,)
    predicted = np.empty((len(y), len(sets)))
    for group in np.unique(groups):
        own = groups == group
        rest = squares - x[own].T @ x[own]
        matrices = rest[rows, columns] + NOT_SINGULAR * len(y) * np.eye(sets.shape[1])  # (s, k, k)
        right = (products - x[own].T @ y[own])[sets]  # (s, k)
        coefficients = np.linalg.solve(matrices, right[..., None])[..., 0]  # (s, k)
        predicted[own] = np.einsum("nsk,sk->ns", x[own][:, sets], coefficients)
    errors = np.sqrt(np.mean((predicted - y[:, None]) ** 2, axis=0))
    apart = np.linalg.det(squares[rows, columns] / len(y))
    return np.where(apart < LEAST_APART, np.inf, errors)


def left_out_predictions(x: np.ndarray, y: np.ndarray, groups: np.ndarray, most: int = MOST_FIGURES) -> np.ndarray:
    """``y (n,)`` of each group as predicted by what is chosen and fitted without it: the choice sees nothing of the group either."""
    predicted = np.empty(len(y))
    for group in np.unique(groups):
        own, rest = groups == group, groups != group
        columns = list(choose(x[rest], y[rest], groups[rest], most).columns)
        predicted[own] = x[own][:, columns] @ least_squares(x[rest][:, columns], y[rest]) if columns else 0.0
    return predicted
