"""How good a set of generated images is: FID, inception score, precision and recall, by torch-fidelity's own functions.

A metric is a function ``(generated, reference) -> {name: value}``. To add one, write it in a file of its own and add a line
to :data:`METRICS`; if it cannot work from moments alone, let it call :func:`reference_features`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from flowprior.errors import UserError
from flowprior.metrics.extractors import Features
from flowprior.metrics.statistics import Statistics

INCEPTION_SCORE_SPLITS = 10
NEIGHBOURHOOD = 3

Reference = Features | Statistics
Metric = Callable[[Features, Reference], dict[str, float]]


class ReferenceFeaturesNeeded(UserError):
    """A metric was given moments where it needs the reference's features themselves."""


def reference_features(metric: str, reference: Reference) -> Features:
    """The reference as features, or :class:`ReferenceFeaturesNeeded`."""
    if isinstance(reference, Features):
        return reference
    raise ReferenceFeaturesNeeded(f"{metric} compares single images: give the features of the reference set, not its statistics")


def statistics_of(features: Features) -> Statistics:
    """Moments of features as torch-fidelity computes them, in float64."""
    _require(features, 2, "FID")
    moments = fid_features_to_statistics(features.features.double())
    return Statistics(moments["mu"], moments["sigma"], features.count, features.extractor)


def fid(generated: Features, reference: Reference) -> dict[str, float]:
    """Fréchet distance between Gaussians of the two sets' moments (Heusel et al. 2017, arXiv 1706.08500); key ``fid``."""
    first = statistics_of(generated)
    second = statistics_of(reference) if isinstance(reference, Features) else reference
    if first.mu.shape != second.mu.shape:
        raise UserError(
            f"the reference's statistics have {len(second.mu)} dimensions and the {generated.extractor} features "
            f"{len(first.mu)}: they come from different extractors"
        )
    moments = [{"mu": part.mu, "sigma": part.sigma} for part in (first, second)]
    return {"fid": fid_statistics_to_metric(*moments, verbose=False)[KEY_METRIC_FID]}


def inception_score(generated: Features, reference: Reference) -> dict[str, float]:
    """Mean and deviation over 10 splits of exp KL(p(class | image) || p(class)) (Salimans et al. 2016, arXiv 1606.03498).

    Keys ``inception_score`` and ``inception_score_std``. The reference plays no part.
    """
    _require(generated, INCEPTION_SCORE_SPLITS, "the inception score")
    result = isc_features_to_metric(generated.logits, splits=INCEPTION_SCORE_SPLITS)
    return {"inception_score": result[KEY_METRIC_ISC_MEAN], "inception_score_std": result[KEY_METRIC_ISC_STD]}


def precision_recall(generated: Features, reference: Reference) -> dict[str, float]:
    """Shares of each set inside the other's 3-nearest-neighbour balls (Kynkäänniemi et al. 2019, arXiv 1904.06991).

    Keys ``precision`` (generated inside real) and ``recall`` (real inside generated).
    """
    real = reference_features("precision_recall", reference)
    for features in (generated, real):
        _require(features, NEIGHBOURHOOD + 1, "precision and recall")
    result = prc_features_to_metric(
        generated.features, real.features, prc_neighborhood=NEIGHBOURHOOD, save_cpu_ram=True, verbose=False
    )
    return {"precision": result[KEY_METRIC_PRECISION], "recall": result[KEY_METRIC_RECALL]}


METRICS: dict[str, Metric] = {
    "fid": fid,
    "inception_score": inception_score,
    "precision_recall": precision_recall,
}


def evaluate_generation(generated: Features, reference: Reference, metrics: Iterable[str] | None = None) -> dict[str, float]:
    """All numbers of the named metrics in one dict.

    Args:
        generated: features of the generated images.
        reference: features of the real images, or their statistics.
        metrics: names of :data:`METRICS`; ``None`` is every one that this kind of reference allows.

    Raises:
        UserError: for an unknown name, for a reference by another extractor, for too few images, or where a named metric
            needs the reference's features.
    """
    if reference.extractor is not None and reference.extractor != generated.extractor:
        raise UserError(f"generated features are by {generated.extractor!r}, the reference's by {reference.extractor!r}")
    results: dict[str, float] = {}
    for name in METRICS if metrics is None else metrics:
        if name not in METRICS:
            nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)
            raise UserError(f"there is no metric {name!r}; did you mean {nearest[0]!r}? The metrics are: {', '.join(METRICS)}")
        try:
            results |= METRICS[name](generated, reference)
        except ReferenceFeaturesNeeded:
            if metrics is not None:
                raise
    return results


def half_half_fid(features: Features, seed: int) -> float:
    """FID of one random half of a set against the other: about the floor that finite counts put under any FID on it."""
    order = torch.randperm(features.count, generator=torch.Generator().manual_seed(seed))
    half = features.count // 2
    return fid(features.subset(order[:half]), features.subset(order[half : 2 * half]))["fid"]


def _require(features: Features, count: int, what: str) -> None:
    if features.count < count:
        raise UserError(f"{what} needs at least {count} images, got {features.count}")
