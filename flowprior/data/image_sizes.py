"""How large the images in files are, read from their headers."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from flowprior.data.image_reader import read_size
from flowprior.data.images import StoredImages, telling_of_skip_bad


class ImageSize(NamedTuple):
    """Pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def stored_sizes(images: StoredImages, threads: int = 8) -> Counter[ImageSize]:
    """How many of the images have which size.

    Raises:
        UserError: one of them cannot be read.
    """
    store, found = images.store, Counter[ImageSize]()

    def size(index: int) -> ImageSize:
        with telling_of_skip_bad(), store.open(index) as opened:
            return ImageSize(*read_size(opened, store.name(index)))

    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(images), 4096):  # the pool would hold a million tasks at once
            found.update(pool.map(size, range(first, min(first + 4096, len(images)))))
    return found
