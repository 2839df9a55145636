"""Inception score (Salimans et al. 2016, arXiv 1606.03498), by torch-fidelity's function."""

from __future__ import annotations

from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from flowprior.errors import UserError
from flowprior.metrics.image_set import ImageSet
from flowprior.metrics.statistics import Statistics

SPLITS = 10


def inception_score(generated: ImageSet, reference: ImageSet | Statistics) -> dict[str, float]:
    """Mean and deviation over 10 splits of exp E KL(p(class | image) || p(class)), in [1, number of classes].

    Keys ``inception_score`` and ``inception_score_std``. The reference plays no part.
    """
    logits = generated.features().logits
    if len(logits) < SPLITS:
        raise UserError(f"the inception score needs at least {SPLITS} images, got {len(logits)}")
    result = isc_features_to_metric(logits, splits=SPLITS)
    return {"inception_score": result[KEY_METRIC_ISC_MEAN], "inception_score_std": result[KEY_METRIC_ISC_STD]}
