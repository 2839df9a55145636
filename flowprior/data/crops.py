"""Squares that are cut from images of any size: ADM's for evaluation and training, and the random resized one."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's evaluation crop: halve by boxes while more than twice too large, resize the shorter side bicubically, cut the centre."""
    image = _shrunk(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(image: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """ADM's training crop (``random_crop_arr``, arXiv 2105.05233): the shorter side becomes ``size`` to ``size / 0.8`` pixels, resized as for
    the evaluation crop, and a square of ``size`` is cut anywhere."""
    image = _shrunk(image, int(random.integers(size, math.ceil(size / 0.8) + 1)))
    top, left = int(random.integers(image.height - size + 1)), int(random.integers(image.width - size + 1))
    return image.crop((left, top, left + size, top + size))


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    """The whole image with ``side`` pixels on its shorter side."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    return image.resize(
        (max(side, round(image.width * scale)), max(side, round(image.height * scale))), Image.Resampling.BICUBIC
    )


def random_resized_box(
    height: int, width: int, min_area: float, random: np.random.Generator
) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop whose area is uniform in [min_area, 1] and whose aspect is log-uniform in [3/4, 4/3]."""
    for _ in range(10):
        area = height * width * random.uniform(min_area, 1.0)
        aspect = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        h, w = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < h <= height and 0 < w <= width:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side
