"""The fingerprint of a folder of images: names, lengths and contents, wherever the folder lies and whenever it was written."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from flowprior.data.image_reader import conversions, read_by_earlier_versions
from flowprior.notes import note
from flowprior.run.files import file_sha256
from flowprior.run.fingerprints import ImagesFingerprint
from flowprior.training.randomness import stream_seed

FILES_READ = 4096
THREADS = 8
NAMES_AT_ONCE = 1024
READER = 2  # raised with every change of how an image file becomes pixels


def images_fingerprint(root: Path, names: np.ndarray, crop: tuple[str, int]) -> ImagesFingerprint:
    """16 hex digits that are equal for equal files and crops, and differ where anything differs that is looked at.

    Up to :data:`FILES_READ` files are read whole. Of a larger set the contents of so many count, spread evenly from the first to the
    last, and names and lengths of all. Modification times do not count. Prints how many images are shown otherwise than they are stored, or
    enlarged.

    Args:
        root: the folder.
        names: ``(N,)`` bytes, paths below it in their order.
        crop: name and size in pixels.
    """
    places = np.unique(np.linspace(0, len(names) - 1, min(FILES_READ, len(names))).astype(np.int64))
    chosen = [root / os.fsdecode(names[place]) for place in places]
    with ThreadPoolExecutor(THREADS) as pool:  # a network's disk answers many at once
        parts = [names[first : first + NAMES_AT_ONCE] for first in range(0, len(names), NAMES_AT_ONCE)]
        lengths = [length for part in pool.map(lambda part: _lengths(root, part), parts) for length in part]
        contents = list(pool.map(file_sha256, chosen))
    texts = [f"{os.fsdecode(name)} {length}" for name, length in zip(names, lengths)]
    digest = hashlib.sha256(repr((READER, crop, contents)).encode())
    for text in texts:
        digest.update(repr(text).encode())
    _say_conversions(root, chosen, crop[1])
    before = f"{stream_seed(f'{crop[0]} crop', crop[1], *texts):016x}"
    return ImagesFingerprint.of(digest.hexdigest()[:16], before, _first_read_otherwise(chosen))


def _say_conversions(root: Path, files: list[Path], size: int) -> None:
    """A note of how many of the images are shown otherwise than they lie in their files, by ``size`` pixels on a side."""
    counts = Counter(rule for file in files for rule in conversions(file, size))
    if counts:
        summary = ", ".join(f"{count} with {rule}" for rule, count in counts.items())
        note(f"of {len(files)} images looked at in {root}: {summary}")


def count_copies(root: Path, names: np.ndarray, of_root: Path, of_names: np.ndarray) -> int:
    """How many of the files ``names`` below ``root``, up to :data:`FILES_READ` of them spread evenly, are copies of files below ``of_root``."""
    places = np.unique(np.linspace(0, len(names) - 1, min(FILES_READ, len(names))).astype(np.int64))
    wanted = [root / os.fsdecode(names[place]) for place in places]
    lengths = {file.stat().st_size for file in wanted}
    with ThreadPoolExecutor(THREADS) as pool:
        parts = [of_names[first : first + NAMES_AT_ONCE] for first in range(0, len(of_names), NAMES_AT_ONCE)]
        sizes = [size for part in pool.map(lambda part: _lengths(of_root, part), parts) for size in part]
        alike = [of_root / os.fsdecode(name) for name, size in zip(of_names, sizes) if size in lengths]
        # Of a million images many share a length: their first bytes tell nearly all of them apart.
        starts = set(pool.map(_start, wanted))
        alike = [file for file, start in zip(alike, pool.map(_start, alike)) if start in starts]
        others = set(pool.map(file_sha256, alike))
        return sum(contents in others for contents in pool.map(file_sha256, wanted))


def _start(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(4096)


def _lengths(root: Path, names: np.ndarray) -> list[int]:
    above = os.fsencode(root)
    return [os.stat(os.path.join(above, name)).st_size for name in names.tolist()]


def _first_read_otherwise(files: Iterable[Path]) -> str:
    return next((str(file) for file in files if not read_by_earlier_versions(file)), "")
