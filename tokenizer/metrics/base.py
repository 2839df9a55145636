"""What a measure of reconstructions is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor


class MeterContext(NamedTuple):
    """What a meter may be built from."""

    device: torch.device
    image_count: int
    image_size: int
    extractor: str = ""  # as flowprior.metrics.registry.check_extractor takes it
    extractor_weights: str = ""
    reference: str = ""  # .npz of the real images' moments; empty: the originals themselves
    perceptual_weights: str = ""


class Meter(ABC):
    """Gathers over batches of images and their reconstructions; keeps neither."""

    def __init__(self, context: MeterContext) -> None:
        self.context = context

    @abstractmethod
    def update(self, original: Tensor, reconstructed: Tensor) -> None:
        """Add a batch of pairs, uint8 ``(B, 3, H, H)`` on the CPU, as they would be saved."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The metrics so far."""

    def protocol(self) -> dict[str, Any]:
        """What a result file says of how it was measured."""
        return {}
