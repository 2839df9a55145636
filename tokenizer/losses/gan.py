"""Adversarial losses of logits: what the discriminator minimises, and what the autoencoder does. Larger logits mean "real"."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class GANLoss(NamedTuple):
    """Two games that are each other's opposite."""

    discriminator: Callable[[Tensor, Tensor], Tensor]  # (logits of real images, logits of reconstructions) -> scalar
    generator: Callable[[Tensor], Tensor]  # logits of reconstructions -> scalar


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``(E max(0, 1 - D(x)) + E max(0, 1 + D(x'))) / 2`` (Lim and Ye 2017, arXiv 1705.02894)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """``(- E log s(D(x)) - E log(1 - s(D(x')))) / 2`` with s the logistic function (Goodfellow et al. 2014, arXiv 1406.2661)."""
    return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


def mean_generator(fake: Tensor) -> Tensor:
    """``- E D(x')``, the hinge game's generator."""
    return -fake.mean()


def non_saturating_generator(fake: Tensor) -> Tensor:
    """``- E log s(D(x'))``."""
    return F.softplus(-fake).mean()


def minimax_generator(fake: Tensor) -> Tensor:
    """``E log(1 - s(D(x')))``, the original game; its gradient vanishes where the discriminator is sure."""
    return -F.softplus(fake).mean()


GAN_LOSSES = {
    "hinge": GANLoss(hinge_discriminator, mean_generator),
    "non_saturating": GANLoss(logistic_discriminator, non_saturating_generator),
    "vanilla": GANLoss(logistic_discriminator, minimax_generator),
}
