"""Sheets of images that a person looks at."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from flowprior.run.files import write_bytes


def save_sheet(path: Path, images: Tensor, columns: int, enlarge: int = 1) -> None:
    """Write uint8 images ``(N, 3, H, W)`` as a PNG with ``columns`` images in a row."""
    images = images.repeat_interleave(enlarge, -1).repeat_interleave(enlarge, -2)
    buffer = io.BytesIO()
    save_image(make_grid(images.float() / 255, nrow=columns, padding=2, pad_value=1.0), buffer, format="png")
    write_bytes(path, buffer.getvalue())


def save_pairs(path: Path, above: Tensor, below: Tensor, columns: int = 8) -> None:
    """Write originals over their reconstructions, in rows of ``columns`` pairs; both uint8 ``(N, 3, H, W)``."""
    rows = [part for pair in zip(above.split(columns), below.split(columns)) for part in pair]
    save_sheet(path, torch.cat(rows), columns, enlarge=2 if above.shape[-1] <= 64 else 1)
