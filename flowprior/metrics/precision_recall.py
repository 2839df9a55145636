"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), by torch-fidelity's function."""

from __future__ import annotations

from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from flowprior.errors import UserError
from flowprior.metrics.image_set import ImageSet

NEIGHBOURHOOD = 3


def precision_recall(generated: ImageSet, reference: ImageSet) -> dict[str, float]:
    """Shares of each set inside the other's 3-nearest-neighbour balls; the time is quadratic in the number of images.

    Keys ``precision`` (generated inside real) and ``recall`` (real inside generated), both in [0, 1].
    """
    layers = [part.features().prc for part in (generated, reference)]
    smallest = min(map(len, layers))
    if smallest <= NEIGHBOURHOOD:
        raise UserError(f"precision and recall need at least {NEIGHBOURHOOD + 1} images, got {smallest}")
    result = prc_features_to_metric(*layers, prc_neighborhood=NEIGHBOURHOOD, save_cpu_ram=True, verbose=False)
    return {"precision": result[KEY_METRIC_PRECISION], "recall": result[KEY_METRIC_RECALL]}
