"""How large the images in files are, read from their headers."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from flowprior.data.image_reader import read_size
from flowprior.data.images import FolderImages


class ImageSize(NamedTuple):
    """Pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def stored_sizes(images: FolderImages, threads: int = 8) -> Counter[ImageSize]:
    """How many images of a folder have which size.

    Raises:
        UserError: a file cannot be read.
    """
    found: Counter[ImageSize] = Counter()
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(images), 4096):  # the pool would hold a million tasks at once
            files = map(images.file, range(first, min(first + 4096, len(images))))
            found.update(ImageSize(*size) for size in pool.map(read_size, files))
    return found
