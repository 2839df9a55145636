"""Fréchet distances by several extractors in one number, since any one of them misranks (FDr, arXiv 2604.28190)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from flowprior.errors import UserError
from flowprior.metrics.fid import frechet_distance
from flowprior.metrics.statistics import Statistics

ROUNDING = 1e-6  # of the reference's variance: a set and its copy in another order measure up to 6e-8 of it apart


def baseline_distance(baseline: Statistics, reference: Statistics, extractor: str) -> float:
    """FD of the baseline, which FDr divides by.

    Raises:
        UserError: it is 0 but for rounding, as of the reference's own images in whatever order.
    """
    distance = frechet_distance(baseline, reference)
    if not distance > ROUNDING * np.trace(reference.sigma):
        raise UserError(
            f"the baseline of FDr is no farther than rounding ({distance:.3g}) from the reference by {extractor}: give images that are "
            "not the reference's own"
        )
    return distance


def mean_ratio(distances: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """FDr: the mean over k extractors of FD / FD of a baseline, both from the same reference; no unit, 1 is as far as the baseline.

    Args:
        distances: of the generated images, by extractor.
        baselines: :func:`baseline_distance` of images that the reference does not hold, real ones say; by the same extractors.
    """
    return sum(distance / baselines[name] for name, distance in distances.items()) / len(distances)
