"""Sets of images for tests of metrics."""

from __future__ import annotations

from flowprior.metrics.extractors import Extractor, Features
from flowprior.metrics.image_set import ImageSet
from flowprior.metrics.statistics import Statistics


class OfFeatures(ImageSet):
    """A set of which only the features are known."""

    def __init__(self, features: Features) -> None:
        super().__init__(lambda: [], Extractor(features.extractor))
        self.found = features

    def features(self, extractor: Extractor | None = None) -> Features:
        return self.found

    def statistics(self, extractor: Extractor | None = None) -> Statistics:
        return self.found.statistics()
