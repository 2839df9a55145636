"""The 1,797 handwritten digits that ship inside scikit-learn: real images with nothing to download."""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F


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
