"""What a generator of latents is, and the bundle of one with the scale of its latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.errors import UserError
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.randomness import StepRandom


class Generator(nn.Module, ABC):
    """A class-conditional model of normalised latents ``(B, T, C)``."""

    num_classes: int
    drops_labels: bool = True  # whether training drops some, without which there is nothing to guide away from

    @property
    def no_decay(self) -> Iterable[nn.Parameter]:
        """Parameters that weight decay leaves alone, besides biases and norms, which it never reaches."""
        return ()

    @abstractmethod
    def loss(self, latents: Tensor, labels: Tensor, random: StepRandom) -> Tensor:
        """The training loss, a scalar, of normalised latents ``(B, T, C)`` with labels ``(B,)``."""

    def check_guidance(self, cfg: float) -> None:
        """A :class:`~flowprior.errors.UserError` where the guidance scale ``cfg`` is not one to sample at: of a generator that has never seen a
        dropped label all but 1, since it would be guided away from an embedding that is still random."""
        if cfg != 1 and not self.drops_labels:
            raise UserError(
                f"the generator is trained with label_drop=0, and guidance at {cfg:g} needs dropped labels: write sample.cfg=[1] "
                "sample.preview_cfg=1 (--cfg 1), or train with model.<name>.label_drop=0.1"
            )

    @abstractmethod
    def sample(self, labels: Tensor, seeds: list[int], cfg: float) -> Tensor:
        """Normalised latents ``(B, T, C)`` for labels ``(B,)``; sample i depends on its label, ``seeds[i]`` and ``cfg`` only."""


def build_generator(section: Any, tokens: int, channels: int, num_classes: int) -> Generator:
    """The generator that a config's ``model`` names."""
    return getattr(section, section.name).build(tokens, channels, num_classes)


class GeneratorObjective(Objective):
    """Stage 3's objective: the generator's loss on normalised latents."""

    def __init__(self, model: Generator, normaliser: LatentNormaliser) -> None:
        super().__init__()
        self.model, self.normaliser = model, normaliser

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        return StepOutput(self.model.loss(self.normaliser(batch["latents"]), batch["label"], random))
