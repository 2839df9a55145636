"""Balanced consistency of a discriminator (Zhao et al. 2020, arXiv 2002.04724)."""

from __future__ import annotations

from torch import Tensor


def consistency_loss(logits: Tensor, augmented: Tensor) -> Tensor:
    """Mean squared difference between the logits of images and of the same images augmented; real and reconstructed alike."""
    return (logits - augmented).square().mean()
