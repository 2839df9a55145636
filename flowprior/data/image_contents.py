"""The fingerprint of images in a place: names, lengths and contents, wherever the place lies and whenever it was written."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from flowprior.data.image_reader import conversions, read_by_earlier_versions
from flowprior.data.stores.base import ImageStore
from flowprior.data.stores.files import FolderStore
from flowprior.notes import note
from flowprior.run.fingerprints import ImagesFingerprint

FILES_READ = 4096
THREADS = 8
IMAGES_AT_ONCE = 1024
START_BYTES = 4096
MOST_COMPARED = 65_536
READER = 2  # raised with every change of how an image file becomes pixels

T = TypeVar("T")


def images_fingerprint(store: ImageStore, crop: tuple[str, int]) -> ImagesFingerprint:
    """16 hex digits that are equal for equal images and crops, and differ where anything differs that is looked at.

    Up to :data:`FILES_READ` images are read whole. Of a larger set the contents of so many count, spread evenly from the first to the
    last, and names and lengths of all. Modification times do not count, nor where the images lie. Prints how many images are shown
    otherwise than they are stored, or enlarged.

    Args:
        store: of the images.
        crop: name and size in pixels.
    """
    chosen = store.spread(FILES_READ).tolist()
    with ThreadPoolExecutor(THREADS) as pool:  # a network's disk answers many at once
        looked_at = list(pool.map(lambda index: _look_at(store, index, crop[1]), chosen))
        contents = [sha256 for sha256, _ in looked_at]
        digest = hashlib.sha256(repr((READER, crop, contents)).encode())
        of_folder = isinstance(store, FolderStore) and not store.loses_labels
        if isinstance(store, FolderStore) and store.loses_labels:
            digest.update(b"without labels")
        elif not of_folder:
            digest.update(repr((store.kind, store.class_names)).encode() + store.labels.astype("<i8").tobytes())
        before = _EarlierFingerprint(crop)
        for facts in _in_parts(pool, store.facts, len(store)):
            for fact in facts:
                digest.update(repr(fact).encode())
            if of_folder:
                before.update(facts)
    if counts := Counter(rule for _, rules in looked_at for rule in rules):
        summary = ", ".join(f"{count} with {rule}" for rule, count in counts.items())
        note(f"of {len(chosen)} images looked at in {store.where}: {summary}")
    if not of_folder:  # earlier versions read folders alone
        return ImagesFingerprint(digest.hexdigest()[:16])
    return ImagesFingerprint.of(digest.hexdigest()[:16], before.value(), _first_read_otherwise(store, chosen))


class _EarlierFingerprint:
    """``stream_seed`` of crop and facts, in 16 hex digits, without holding them all."""

    def __init__(self, crop: tuple[str, int]) -> None:
        self.digest = hashlib.blake2b(repr((f"{crop[0]} crop", crop[1]))[:-1].encode(), digest_size=8)

    def update(self, facts: list[str]) -> None:
        self.digest.update("".join(f", {fact!r}" for fact in facts).encode())

    def value(self) -> str:
        self.digest.update(b")")
        return f"{int.from_bytes(self.digest.digest(), 'big') >> 1:016x}"


def _in_parts(pool: Executor, ask: Callable[[int, int], T], count: int) -> Iterator[T]:
    """``ask(first, end)`` of consecutive parts, in order, a few of them at once."""
    waiting: deque = deque()
    for first in range(0, count, IMAGES_AT_ONCE):
        waiting.append(pool.submit(ask, first, min(first + IMAGES_AT_ONCE, count)))
        if len(waiting) > 2 * THREADS:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _look_at(store: ImageStore, index: int, size: int) -> tuple[str, list[str]]:
    """The SHA-256 of an image as it is stored, and what it is shown otherwise in, by ``size`` pixels on a side."""
    data = store.read(index)
    return hashlib.sha256(data).hexdigest(), conversions(io.BytesIO(data), size)


def count_copies(store: ImageStore, of: ImageStore) -> int:
    """How many of the images in ``store``, up to :data:`FILES_READ` of them spread evenly, are copies of images in ``of``.

    All of these are compared, but no more than :data:`MOST_COMPARED` of a place that does not tell lengths, which is said.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        wanted = list(pool.map(lambda index: _Outline.of(store.read(index)), store.spread(FILES_READ).tolist()))
        lengths, starts = {one.length for one in wanted}, {one.start for one in wanted}
        if of.lengths(0, 1) is not None:
            sizes = (size for part in _in_parts(pool, of.lengths, len(of)) for size in part or ())
            alike = [index for index, size in enumerate(sizes) if size in lengths]
            # Of a million images many share a length: their first bytes tell nearly all of them apart.
            alike = [index for index, start in zip(alike, pool.map(lambda i: _start(of, i), alike)) if start in starts]
        else:
            alike = of.spread(MOST_COMPARED).tolist()
            if len(alike) < len(of):
                note(f"{len(alike)} of the {len(of)} images in {of.where} are compared with those in {store.where}")
        others = set(pool.map(lambda index: _Outline.of(of.read(index)).contents, alike))
        return sum(one.contents in others for one in wanted)


class _Outline(NamedTuple):
    """What tells one image from another."""

    length: int
    start: bytes
    contents: str

    @classmethod
    def of(cls, data: bytes) -> _Outline:
        return cls(len(data), data[:START_BYTES], hashlib.sha256(data).hexdigest())


def _start(store: ImageStore, index: int) -> bytes:
    with store.open(index) as opened:
        return opened.read(START_BYTES)


def _first_read_otherwise(store: FolderStore, chosen: Iterable[int]) -> str:
    return next((str(file) for file in map(store.file, chosen) if not read_by_earlier_versions(file)), "")
