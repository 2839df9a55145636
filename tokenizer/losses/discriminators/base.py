"""What a discriminator is."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Discriminator(nn.Module, ABC):
    """Images ``(B, 3, H, H)`` in [-1, 1] to logits ``(B, n)``, larger for what looks real.

    No layer may mix the images of a batch, so that nothing depends on the number of processes.
    """

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The part with an optimiser of its own, which checkpoints hold."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...
