"""A set of images as metrics see it: the images, their labels where known, and their features, extracted when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from tqdm import tqdm

from flowprior.data.images import ImageSource
from flowprior.data.order import SampleKey
from flowprior.errors import UserError
from flowprior.metrics.extractors import Extractor, Features
from flowprior.metrics.statistics import Statistics, StreamingMoments

BATCH = 128


class ImageSet:
    """Images, generated or real.

    Args:
        images: uint8 ``(N, 3, H, W)``, or a function that starts a new pass over batches ``(B, 3, H, W)``, where they are too many to hold.
        extractor: what :meth:`features` and :meth:`statistics` use unless they are given another.
        labels: the class of every image, int64 ``(N,)``.
        progress: show a bar while extracting.
    """

    def __init__(
        self,
        images: Tensor | Callable[[], Iterable[Tensor]],
        extractor: Extractor,
        labels: Tensor | None = None,
        *,
        progress: bool = False,
    ) -> None:
        if torch.is_tensor(images) and labels is not None and len(labels) != len(images):
            raise ValueError(f"expected one label per image, got {len(images)} images and {len(labels)} labels")
        self._images, self.extractor, self.labels, self.progress = images, extractor, labels, progress
        self._features: dict[str, Features] = {}

    @classmethod
    def of_source(
        cls, source: ImageSource, extractor: Extractor, *, threads: int = 4, progress: bool = False
    ) -> ImageSet:
        """All images of a source, without augmentation, read by ``threads`` and not kept."""
        return cls(lambda: _read(source, threads), extractor, progress=progress)

    @classmethod
    def of_features(cls, features: Features, labels: Tensor | None = None) -> ImageSet:
        """A set of which only the features are known."""
        made = cls(_no_images, Extractor(features.extractor), labels)
        made._features[features.extractor] = features
        return made

    @property
    def images(self) -> Tensor:
        """All images at once, uint8 ``(N, 3, H, W)``."""
        return self._images if torch.is_tensor(self._images) else torch.cat(list(self.batches()))

    def batches(self) -> Iterable[Tensor]:
        """A new pass over the images, uint8 ``(B, 3, H, W)`` at a time."""
        return self._images.split(BATCH) if torch.is_tensor(self._images) else self._images()

    def features(self, extractor: Extractor | None = None) -> Features:
        """Features of all images, on the CPU; extracted once for every extractor.

        Raises:
            ValueError: there are no images, or they are not uint8 RGB.
            UserError: the extractor's weights cannot be had.
        """
        extractor = extractor or self.extractor
        if extractor.name not in self._features:
            parts = [extractor(batch).cpu() for batch in self._bar(extractor)]
            if not parts:
                raise ValueError("there are no images to extract features from")
            self._features[extractor.name] = Features.concatenate(parts)
        return self._features[extractor.name]

    def statistics(self, extractor: Extractor | None = None) -> Statistics:
        """Moments of the FID layer; no features are kept for it."""
        extractor = extractor or self.extractor
        if extractor.name in self._features:
            return self._features[extractor.name].statistics()
        moments = StreamingMoments()
        for batch in self._bar(extractor):
            moments.update(extractor(batch).fid)
        if moments.count < 2:
            raise UserError(f"FID needs at least 2 images, got {moments.count}")
        return moments.statistics(extractor.name)

    def _bar(self, extractor: Extractor) -> Iterable[Tensor]:
        return tqdm(
            self.batches(),
            desc=f"{extractor.name} features",
            unit="batch",
            disable=not self.progress,
            dynamic_ncols=True,
        )


def _read(source: ImageSource, threads: int) -> Iterator[Tensor]:
    # One key a call, so that threads decode one batch together and a bad file's error arrives here as it was raised.
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(source), BATCH):
            keys = [[SampleKey(index, -1)] for index in range(start, min(start + BATCH, len(source)))]
            yield torch.cat([part["image"] for part in pool.map(source.batch, keys)])  # (B, 3, H, W)


def _no_images() -> Iterable[Tensor]:
    raise ValueError("of this set only the features are known, not the images")
