"""CIFAR-10 by torchvision's loader, held in memory: 50,000 images of its training set and 10,000 of its test set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flowprior.errors import UserError, one_line

SIDE = 32
SUBSETS = {"all": (True, False), "train": (True,), "val": (False,)}  # by torchvision's option train


class LabelledImages(NamedTuple):
    """A data set in memory."""

    images: Tensor  # uint8 (N, 3, S, S)
    labels: Tensor  # int64 (N,)
    class_names: list[str]


def cifar10_images(folder: str, subset: str, size: int = SIDE, download: bool = False) -> LabelledImages:
    """The images in torchvision's order; other sizes than 32 are resized bicubically.

    torchvision compares the files' checksums with the published ones before it reads them.

    Args:
        folder: holds ``cifar-10-batches-py``, or is to hold it.
        subset: ``train``, ``val`` for the test set, or ``all``.
        size: pixels on a side.
        download: fetch what is missing.

    Raises:
        UserError: the files are not there, are damaged, or could not be fetched.
    """
    from torchvision.datasets import CIFAR10

    place = Path(folder) / CIFAR10.base_folder
    if not folder:
        raise UserError(f"data.source=cifar10 needs data.path=<the folder that holds {CIFAR10.base_folder}>")
    there = (place / CIFAR10.meta["filename"]).is_file()
    if download and not there and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"several processes would fetch CIFAR-10 into {folder} at once: run it with NPROC=1 once, before"
        )
    try:
        parts = [CIFAR10(folder, train=train, download=download and not there) for train in SUBSETS[subset]]
    except RuntimeError as error:
        what = "is damaged or not whole" if place.is_dir() else "is not there"
        raise UserError(
            f"CIFAR-10 {what} at {place}: unpack {CIFAR10.url} into {folder}, or write data.download=true"
        ) from error
    except OSError as error:
        raise UserError(
            f"CIFAR-10 could not be fetched ({one_line(error)}): unpack {CIFAR10.url} into {folder} yourself"
        ) from error
    images = torch.from_numpy(np.concatenate([part.data for part in parts])).permute(0, 3, 1, 2)  # (N, 3, 32, 32)
    labels = torch.tensor([label for part in parts for label in part.targets])
    return LabelledImages(resized(images, size).contiguous(), labels, list(parts[0].classes))


def resized(images: Tensor, size: int, batch: int = 4096) -> Tensor:
    """uint8 ``(N, 3, S, S)`` at another size."""
    if size == images.shape[-1]:
        return images
    parts = (
        F.interpolate(part.float(), (size, size), mode="bicubic", align_corners=False, antialias=True)
        for part in images.split(batch)
    )
    return torch.cat([part.clamp(0, 255).round().to(torch.uint8) for part in parts])
