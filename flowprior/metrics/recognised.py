"""How often a judge sees the digit that was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowprior.metrics.digit_networks import recognised_share

if TYPE_CHECKING:
    from flowprior.metrics.image_set import ImageSet
    from flowprior.metrics.statistics import Statistics


def recognised(generated: ImageSet, reference: ImageSet | Statistics) -> dict[str, float]:
    """Share in [0, 1] of the images in which a judge sees the digit of their label; key ``recognised``.

    The judge is that of the extractor's data set. The reference plays no part.
    """
    return {"recognised": recognised_share(generated.extractor.name, generated.images, generated.labels)}
