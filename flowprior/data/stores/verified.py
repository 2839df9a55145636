"""A place without the images that cannot be read: every image is decoded once, and which were left out is kept beside them.

The order of training stays a function of (seed, epoch), since the list is whole before it begins.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, Dataset

from flowprior.data.image_reader import read_image
from flowprior.data.stores.base import ImageStore
from flowprior.data.stores.kept import kept_or_made, places
from flowprior.errors import UserError
from flowprior.notes import counted, note
from flowprior.progress import progress_bar
from flowprior.run.files import read_json, write_json

IMAGES_AT_ONCE = 64
MOST_PROCESSES = 16


class BadImage(NamedTuple):
    """An image that cannot be read."""

    index: int
    reason: str


def without_bad_images(store: ImageStore) -> ImageStore:
    """``store`` without the images that cannot be read, which are counted; itself where there are none.

    Raises:
        UserError: none can be read.
    """
    made_from = store.stamp()
    files = places(store.home, ".bad.json", store.kind, store.where if store.home is None else Path(store.where).name)
    bad, file = kept_or_made(files, lambda file: _read(file, made_from, len(store)), lambda: _writer(store, made_from))
    if not bad:
        return store
    if len(bad) == len(store):
        raise UserError(f"none of the {len(store)} images in {store.where} can be read: {bad[0].reason}")
    note(
        f"skip_bad leaves out {counted(len(bad), 'image', 'images')} of {len(store)} in {store.where}, which cannot be read; the first is "
        f"{store.name(bad[0].index)}; {file} lists them with their reasons"
    )
    return ChosenStore(store, np.setdiff1d(np.arange(len(store)), [image.index for image in bad]))


def _writer(store: ImageStore, made_from: str) -> Callable[[Path], None]:
    bad = find_bad_images(store)
    listed = [{"index": image.index, "name": store.name(image.index), "reason": image.reason} for image in bad]
    return lambda file: write_json(file, {"made_from": made_from, "images": len(store), "bad": listed})


def _read(file: Path, made_from: str, count: int) -> tuple[list[BadImage], Path] | None:
    try:
        kept = read_json(file, "list of bad images")
        bad = [BadImage(entry["index"], str(entry["reason"])) for entry in kept["bad"]]
        fits = all(type(image.index) is int and 0 <= image.index < count for image in bad)
        return (bad, file) if kept["made_from"] == made_from and fits else None
    except (UserError, KeyError, TypeError):
        return None


def find_bad_images(store: ImageStore) -> list[BadImage]:
    """Decode every image, in as many processes as there are cores."""
    processes = min(MOST_PROCESSES, os.cpu_count() or 1, len(store) // IMAGES_AT_ONCE)
    batches = [range(first, min(first + IMAGES_AT_ONCE, len(store))) for first in range(0, len(store), IMAGES_AT_ONCE)]
    found = DataLoader(_Verdicts(store), batch_sampler=batches, num_workers=processes, collate_fn=_as_it_is)
    quiet, bad = os.environ.get("RANK", "0") != "0", list[BadImage]()
    with progress_bar(total=len(store), desc="verify images", unit="img", disable=quiet, delay=1.0) as bar:
        for batch, verdicts in zip(batches, found):
            bad += verdicts
            bar.update(len(batch))
    return bad


class _Verdicts(Dataset):
    def __init__(self, store: ImageStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitems__(self, indices: Sequence[int]) -> list[BadImage]:
        return [BadImage(index, reason) for index in indices if (reason := self._reason(index))]

    def _reason(self, index: int) -> str:
        try:
            read_image(io.BytesIO(self.store.read(index)), self.store.name(index))
        except UserError as error:
            return str(error)
        return ""


def _as_it_is(batch: list[BadImage]) -> list[BadImage]:
    return batch


class ChosenStore(ImageStore):
    """Some of the images of a place.

    Args:
        store: of all of them.
        chosen: which, int64 in ascending order.
    """

    def __init__(self, store: ImageStore, chosen: np.ndarray) -> None:
        self.store, self.chosen = store, chosen
        self.kind, self.where, self.home, self.part, self.mixed = (
            store.kind,
            store.where,
            store.home,
            store.part,
            store.mixed,
        )
        self.class_names, self.labels = store.class_names, store.labels[chosen]

    def name(self, index: int) -> str:
        return self.store.name(int(self.chosen[index]))

    def read(self, index: int) -> bytes:
        return self.store.read(int(self.chosen[index]))

    def open(self, index: int) -> BinaryIO:
        return self.store.open(int(self.chosen[index]))

    def lengths(self, first: int, end: int) -> list[int] | None:
        chosen = self.chosen[first:end]
        begin = int(chosen[0]) if len(chosen) else 0
        lengths = self.store.lengths(begin, int(chosen[-1]) + 1 if len(chosen) else 0)
        return None if lengths is None else [lengths[index] for index in (chosen - begin).tolist()]

    def facts(self, first: int, end: int) -> list[str]:
        """Those of all images from the first to the last, and which of them are left out."""
        begin = int(self.chosen[first]) if first else 0
        behind = int(self.chosen[end]) if end < len(self) else len(self.store)
        left_out = np.setdiff1d(np.arange(begin, behind), self.chosen[first:end])
        return [*self.store.facts(begin, behind), *(f"without {index}" for index in left_out.tolist())]

    def stamp(self) -> str:
        return self.store.stamp()

    def spread(self, most: int) -> np.ndarray:
        places = np.searchsorted(self.chosen, self.store.spread(most))
        return np.unique(places[places < len(self)])

    @property
    def starts(self) -> np.ndarray:
        starts = np.unique(np.searchsorted(self.chosen, self.store.starts))
        return starts[starts < len(self)]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "labels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.labels = self.store.labels[self.chosen]
