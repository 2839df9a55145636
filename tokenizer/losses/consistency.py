"""Balanced consistency of a discriminator (Zhao et al. 2020, arXiv 2002.04724)."""

from __future__ import annotations

from torch import Tensor


def consistency_loss(weak: Tensor, strong: Tensor) -> Tensor:
    """Mean squared difference between the logits of two views of the same images, real and reconstructed ones together."""
    return (weak - strong).square().mean()
