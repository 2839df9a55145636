"""A set of images as metrics see it: the images, their labels where known, and their features, extracted when first asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from flowprior.data.image_archive import ImageArchive
from flowprior.data.images import ImageSource
from flowprior.data.order import SampleKey
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.metrics.extractors import Extractor
from flowprior.metrics.features import Features
from flowprior.metrics.statistics import Statistics, StreamingMoments
from flowprior.progress import progress_bar

BATCH = 128
ONE_PROCESS = World()


class ImageSet:
    """Images, generated or real.

    Args:
        images: uint8 ``(N, 3, H, W)``; or a function that starts a new pass over batches ``(B, 3, H, W)``, of :data:`BATCH` images
            but for the last, where they are too many to hold.
        extractor: what :meth:`features` and :meth:`statistics` use unless they are given another.
        labels: the class of every image, int64 ``(N,)``.
        progress: show a bar while extracting.
        world: batches are dealt out to all processes, each of which makes the same calls and gets the same answers.
        known: moments that are known without looking, by extractor.

    Attributes:
        size: (height, width) of the images; None until the first of them was looked at, where they are a stream.
    """

    size: tuple[int, int] | None = None

    def __init__(
        self,
        images: Tensor | Callable[[], Iterable[Tensor]],
        extractor: Extractor,
        labels: Tensor | None = None,
        *,
        progress: bool = False,
        world: World = ONE_PROCESS,
        known: dict[str, Statistics] | None = None,
    ) -> None:
        if torch.is_tensor(images) and labels is not None and len(labels) != len(images):
            raise ValueError(f"expected one label per image, got {len(images)} images and {len(labels)} labels")
        self._images, self.extractor, self.labels = images, extractor, labels
        self.progress, self.world, self.known = progress and world.is_main, world, known or {}
        if torch.is_tensor(images):
            self.size = tuple(images.shape[-2:])
        self._features: dict[tuple[str, str], Features] = {}
        self._moments: dict[tuple[str, str], Statistics] = {}
        self._part: Callable[[int, int], Iterable[Tensor]] | None = None

    @classmethod
    def of_source(cls, source: ImageSource, extractor: Extractor, *, threads: int = 4, **options: object) -> ImageSet:
        """All images of a source, without augmentation, read by ``threads`` and not kept; options as for the class."""
        made = cls(lambda: _read(source, threads, 0, 1), extractor, **options)  # type: ignore[arg-type]
        made._part = lambda part, parts: _read(source, threads, part, parts)
        return made

    @classmethod
    def of_archive(cls, path: str | Path, extractor: Extractor, **options: object) -> ImageSet:
        """The images in an ``.npz`` with ``arr_0`` (see :class:`~flowprior.data.image_archive.ImageArchive`), with its labels."""
        archive = ImageArchive(path)
        made = cls(lambda: archive.batches(BATCH), extractor, archive.labels, **options)  # type: ignore[arg-type]
        made._part, made.size = lambda part, parts: archive.batches(BATCH, part, parts), archive.size
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
        if (key := _key(extractor)) not in self._features:
            parts = [extractor(batch).cpu() for batch in self._mine(extractor)]
            if self.world.size == 1 and not parts:
                raise ValueError("there are no images to extract features from")
            self._features[key] = join_features(parts, extractor, self.world)
        return self._features[key]

    def statistics(self, extractor: Extractor | None = None) -> Statistics:
        """Moments of the FID layer; no features are kept for it."""
        extractor = extractor or self.extractor
        if extractor.name in self.known:
            return self.known[extractor.name]
        if (key := _key(extractor)) in self._features:
            return self._features[key].statistics()
        if key not in self._moments:
            moments = StreamingMoments()
            for batch in self._mine(extractor):
                moments.update(extractor(batch).fid)
            moments.sum_over(self.world)
            if moments.count < 2:
                raise UserError(f"FID needs at least 2 images, got {moments.count}: fewer have no covariance")
            self._moments[key] = moments.statistics(extractor.name)
        return self._moments[key]

    def _mine(self, extractor: Extractor) -> Iterable[Tensor]:
        rank, count = self.world.rank, self.world.size
        if self._part is not None:
            batches = self._part(rank, count)
        else:
            batches = itertools.islice(self.batches(), rank, None, count)
        bar = progress_bar(batches, desc=f"{extractor.name} features", unit="batch", disable=not self.progress)
        return map(self._of_one_size, bar)

    def _of_one_size(self, batch: Tensor) -> Tensor:
        if torch.is_tensor(batch):  # the extractor says what is wrong with anything else
            self.size = self.size or tuple(batch.shape[-2:])
            if tuple(batch.shape[-2:]) != self.size:
                raise ValueError(f"expected images of one size, got {self.size} and {tuple(batch.shape[-2:])}")
        return batch


def _key(extractor: Extractor) -> tuple[str, str]:
    return extractor.name, str(extractor.weights_path or "")


def join_features(parts: list[Features], extractor: Extractor, world: World) -> Features:
    """All processes' features, each of every ``count``-th batch of :data:`BATCH` images, in the images' order."""
    if world.size == 1:
        return Features.concatenate(parts)
    places = [torch.arange(p.count) + (world.rank + n * world.size) * BATCH for n, p in enumerate(parts)]
    mine = Features.concatenate(parts) if parts else None
    empty, [two_layers] = torch.empty(0, 0), world.any(mine is not None and mine.prc is not mine.fid)

    def join(layer: Tensor | None) -> Tensor:
        if layer is None:
            return world.all_gather_rows(empty, empty)
        return world.all_gather_rows(layer, torch.cat(places))

    fid, logits = join(mine and mine.fid), join(mine and mine.logits)
    return Features(fid, logits, join(mine and mine.prc) if two_layers else fid, extractor.name)


def _read(source: ImageSource, threads: int, part: int, parts: int) -> Iterator[Tensor]:
    # One key a call, so that threads decode one batch together and a bad file's error arrives here as it was raised.
    with ThreadPoolExecutor(threads) as pool:
        for start in range(part * BATCH, len(source), parts * BATCH):
            keys = [[SampleKey(index, -1)] for index in range(start, min(start + BATCH, len(source)))]
            yield torch.cat([one["image"] for one in pool.map(source.batch, keys)])  # (B, 3, H, W)
