"""Fréchet distances by several extractors in one number, since any one of them misranks (FDr, arXiv 2604.28190)."""

from __future__ import annotations

from collections.abc import Mapping

from flowprior.errors import UserError


def mean_ratio(distances: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """FDr: the mean over k extractors of FD / FD of a baseline, both from the same reference; no unit, 1 is as far as the baseline.

    Args:
        distances: of the generated images, by extractor.
        baselines: of the baseline's images, real ones that the reference does not hold, say; by the same extractors.

    Raises:
        UserError: a baseline's distance is not above 0.
    """
    for name, distance in baselines.items():
        if not distance > 0:
            raise UserError(
                f"the baseline of FDr is no farther than {distance:.3g} from the reference by {name}: give images that are not "
                "the reference's own"
            )
    return sum(distance / baselines[name] for name, distance in distances.items()) / len(distances)
