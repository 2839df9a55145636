"""The 1,797 handwritten digits that ship inside scikit-learn: real images with nothing to download."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F

NUM_DIGITS = 1797
NUM_CLASSES = 10


@functools.lru_cache(maxsize=2)
def digit_images(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
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


def digit_split(subset: str, seed: int = 0, held_out_fraction: float = 0.2) -> torch.Tensor:
    """Indices of ``all``, or of the ``train`` or ``val`` part of a split that ``seed`` fixes, int64 and sorted.

    Raises:
        ValueError: for any other name.
    """
    if subset == "all":
        return torch.arange(NUM_DIGITS)
    if subset not in ("train", "val"):
        raise ValueError(f"a subset of the digits is all, train or val, not {subset!r}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(NUM_DIGITS))
    held_out = round(NUM_DIGITS * held_out_fraction)
    return order[:held_out].sort().values if subset == "val" else order[held_out:].sort().values
