"""How good a set of generated images is, by the metrics of :data:`~flowprior.metrics.registry.METRICS`.

A metric is a function ``(generated, reference) -> {name: value}`` of two :class:`~flowprior.metrics.image_set.ImageSet`, or of one and
the reference's :class:`~flowprior.metrics.statistics.Statistics`. To add one, write it in a file of its own and add a line to ``METRICS``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flowprior.errors import UserError
from flowprior.metrics.image_set import ImageSet
from flowprior.metrics.registry import METRICS, choose_metrics
from flowprior.metrics.statistics import Statistics


def evaluate_generation(
    generated: ImageSet,
    reference: ImageSet | Statistics,
    metrics: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, float]:
    """All numbers of the named metrics in one dict.

    Args:
        generated: the generated images.
        reference: the real images, or the moments of their features.
        metrics: names of ``METRICS``; none is every one that applies to these images and this kind of reference.
        options: further arguments of a metric, by its name.

    Raises:
        UserError: an unknown name, a reference by another extractor or of images of another size, too few images, or a named metric
            that does not apply.
    """
    extractor, has_images = generated.extractor.name, isinstance(reference, ImageSet)
    of_reference = reference.extractor.name if has_images else reference.extractor
    if of_reference not in (None, extractor):
        raise UserError(f"generated features are by {extractor!r}, the reference's by {of_reference!r}")
    try:
        chosen = choose_metrics(metrics, extractor, reference_images=has_images, labels=generated.labels is not None)
    except ValueError as error:
        raise UserError(str(error)) from None
    check_sizes(generated, reference)
    # Who keeps the reference's features comes first: FID then takes its moments from them and makes no pass of its own.
    order = sorted(chosen, key=lambda name: not METRICS[name].reference_images)
    own = options or {}
    results = {name: METRICS[name].measure(generated, reference, **own.get(name, {})) for name in order}
    check_sizes(generated, reference)  # of a stream of images the size is known once it was read
    return {key: value for name in chosen for key, value in results[name].items()}


def check_sizes(generated: ImageSet, reference: ImageSet | Statistics) -> None:
    """A :class:`UserError` where the images of the two are known to be of different sizes."""
    one = generated.size
    if isinstance(reference, ImageSet):
        other = reference.size and f"{reference.size[1]} x {reference.size[0]}"
    else:
        side = reference.crop and reference.crop.rpartition(" ")[2]
        other = side and f"{side} x {side}"
    if one and other and f"{one[1]} x {one[0]}" != other:
        raise UserError(
            f"the generated images are {one[1]} x {one[0]} and the reference's {other}: compare images of one size"
        )
