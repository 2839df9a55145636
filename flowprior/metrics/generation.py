"""How good a set of generated images is, by the metrics of :data:`~flowprior.metrics.registry.METRICS`.

A metric is a function ``(generated, reference) -> {name: value}`` of two :class:`~flowprior.metrics.image_set.ImageSet`, or of one and
the reference's :class:`~flowprior.metrics.statistics.Statistics`. To add one, write it in a file of its own and add a line to ``METRICS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

from flowprior.errors import UserError
from flowprior.metrics.image_set import ImageSet
from flowprior.metrics.registry import METRICS, choose_metrics
from flowprior.metrics.statistics import Statistics

Metric = Callable[[ImageSet, ImageSet | Statistics], dict[str, float]]


def evaluate_generation(
    generated: ImageSet, reference: ImageSet | Statistics, metrics: Sequence[str] | None = None
) -> dict[str, float]:
    """All numbers of the named metrics in one dict.

    Args:
        generated: the generated images.
        reference: the real images, or the moments of their features.
        metrics: names of ``METRICS``; none is every one that applies to these images and this kind of reference.

    Raises:
        UserError: an unknown name, a reference by another extractor, too few images, or a named metric that does not apply.
    """
    extractor, has_images = generated.extractor.name, isinstance(reference, ImageSet)
    of_reference = reference.extractor.name if has_images else reference.extractor
    if of_reference not in (None, extractor):
        raise UserError(f"generated features are by {extractor!r}, the reference's by {of_reference!r}")
    try:
        chosen = choose_metrics(metrics, extractor, reference_images=has_images, labels=generated.labels is not None)
    except ValueError as error:
        raise UserError(str(error)) from None
    # Who keeps the reference's features comes first: FID then takes its moments from them and makes no pass of its own.
    order = sorted(chosen, key=lambda name: not METRICS[name].reference_images)
    results = {name: _load(METRICS[name].home)(generated, reference) for name in order}
    return {key: value for name in chosen for key, value in results[name].items()}


def _load(home: str) -> Metric:
    module, function = home.split(":")
    return getattr(importlib.import_module(module), function)
