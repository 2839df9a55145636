"""Differentiable augmentation of what a discriminator sees (Zhao et al. 2020, arXiv 2006.10738)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

KINDS = ("colour", "translation", "cutout")
DRAWS = 7  # numbers per image
TRANSLATION = 1 / 8  # of the image's side, at most, either way


def diff_augment(images: Tensor, draws: Tensor, kinds: tuple[str, ...] = KINDS, cutout: float = 0.2) -> Tensor:
    """Images in [-1, 1] with their colours changed, moved, and with a square cut out; the same draws do the same to any image.

    Args:
        images: ``(B, 3, H, W)``.
        draws: ``(B, 7)`` in [0, 1), one row per image.
        kinds: of :data:`KINDS`, applied in that order.
        cutout: side of the square that is cut out, as a share of the image's.
    """
    brightness, saturation, contrast, down, right, top, left = draws.to(images.dtype).unbind(1)  # each (B,)
    if "colour" in kinds:
        images = _colour(images, brightness - 0.5, 2 * saturation, contrast + 0.5)
    if "translation" in kinds:
        images = _translate(images, 2 * down - 1, 2 * right - 1)
    if "cutout" in kinds:
        images = _cut_out(images, top, left, cutout)
    return images


def _colour(images: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    images = images + brightness.view(-1, 1, 1, 1)
    grey = images.mean(1, keepdim=True)  # (B, 1, H, W)
    images = (images - grey) * saturation.view(-1, 1, 1, 1) + grey
    level = images.mean((1, 2, 3), keepdim=True)  # (B, 1, 1, 1)
    return (images - level) * contrast.view(-1, 1, 1, 1) + level


def _translate(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Moved by whole pixels, zeros coming in; ``down`` and ``right`` in [-1, 1) of the largest move."""
    b, _, h, w = images.shape
    rows = torch.arange(h, device=images.device) - (down * h * TRANSLATION).round().long().unsqueeze(1)  # (B, H)
    columns = torch.arange(w, device=images.device) - (right * w * TRANSLATION).round().long().unsqueeze(1)  # (B, W)
    inside = ((rows >= 0) & (rows < h)).unsqueeze(2) & ((columns >= 0) & (columns < w)).unsqueeze(1)  # (B, H, W)
    batch = torch.arange(b, device=images.device).view(-1, 1, 1)
    rows, columns = rows.clamp(0, h - 1).unsqueeze(2), columns.clamp(0, w - 1).unsqueeze(1)  # (B, H, 1), (B, 1, W)
    moved = rearrange(images, "b c h w -> b h w c")[batch, rows, columns]
    return rearrange(moved, "b h w c -> b c h w") * inside.unsqueeze(1)


def _cut_out(images: Tensor, top: Tensor, left: Tensor, share: float) -> Tensor:
    """Zeros in a square whose centre is anywhere in the image."""

    def outside(side: int, place: Tensor) -> Tensor:
        size = round(side * share)
        first = (place * (side + 1)).floor() - size // 2  # (B,)
        at = torch.arange(side, device=images.device).unsqueeze(0)  # (1, side)
        return (at < first.unsqueeze(1)) | (at >= first.unsqueeze(1) + size)  # (B, side)

    keep = outside(images.shape[2], top).unsqueeze(2) | outside(images.shape[3], left).unsqueeze(1)  # (B, H, W)
    return images * keep.unsqueeze(1)
