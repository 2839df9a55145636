"""How large the images in files are, read from their headers."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

from flowprior.data.images import FORMATS, FolderImages
from flowprior.errors import UserError, one_line

TURNED = {5, 6, 7, 8}  # EXIF's orientations that exchange height and width


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
            found.update(pool.map(_size_of, map(images.file, range(first, min(first + 4096, len(images))))))
    return found


def _size_of(file: Path) -> ImageSize:
    try:
        with Image.open(file, formats=FORMATS) as opened:
            turned = opened.getexif().get(ExifTags.Base.Orientation) in TURNED
            width, height = opened.size
    except Exception as error:  # of a damaged file: Pillow's decoders have a dozen; of a bomb: its own
        raise UserError(f"the image {file} cannot be read ({one_line(error)}): mend or remove it") from error
    return ImageSize(width, height) if turned else ImageSize(height, width)
