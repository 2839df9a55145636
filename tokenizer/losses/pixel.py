"""Differences of pixels."""

from __future__ import annotations

from torch import Tensor


def l2_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean squared difference, images in [-1, 1]."""
    return (reconstruction - images).square().mean()


def l1_loss(reconstruction: Tensor, images: Tensor) -> Tensor:
    """Mean absolute difference, images in [-1, 1]."""
    return (reconstruction - images).abs().mean()


PIXEL_LOSSES = {"l2": l2_loss, "l1": l1_loss}
