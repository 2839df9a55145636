"""What a source of frozen features is given and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from flowprior.distributed import World


class FeatureContext(NamedTuple):
    """What a model's ``prepare`` may use."""

    seed: int
    folder: Path  # of the stage: for a model that is worth keeping
    world: World


class FeatureModel(nn.Module, ABC):
    """A frozen model of images. It stays in evaluation mode, whatever module it is a part of."""

    patches: int  # vectors per image
    width: int  # of every vector

    def freeze(self) -> FeatureModel:
        """Call once it is built."""
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> FeatureModel:
        return super().train(False)

    def prepare(self, context: FeatureContext) -> None:
        """Make or read weights that lie in the stage's folder, in all processes together; by default there are none."""

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images ``(B, 3, H, H)`` in [-1, 1] to one vector per patch, ``(B, N, D)``, and one per image, ``(B, D)``."""
