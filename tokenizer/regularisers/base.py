"""What a regulariser is: a term on the latents, and, if it wants, networks of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from flowprior.data.images import ImageSource
from flowprior.distributed import World
from flowprior.flow.prior import FlowPrior
from flowprior.training.checkpoint import Stateful
from flowprior.training.config import TrainConfig
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, Encoded
from tokenizer.features import FeatureModel


class RegulariserContext(NamedTuple):
    """What a regulariser's config may build from."""

    prior: FlowPrior | None  # there whenever a chosen config says needs_prior
    model: AutoencoderConfig  # sizes of the latents that it will see
    num_classes: int
    seed: int
    world: World
    features: FeatureModel | None = None  # there whenever a chosen config says needs_features
    train: TrainConfig = TrainConfig()  # of the autoencoder


class WeightedTerm(NamedTuple):
    """A term, unweighted, and its weight in the step at hand."""

    term: Tensor
    weight: float


class Regulariser(nn.Module, ABC):
    """One term on the latents, weighted by its config.

    A subclass implements :meth:`term`. Parameters that it registers are trained with the autoencoder's optimiser. One that trains
    a network by a loss of its own holds it in an :class:`~flowprior.training.auxiliary_network.AuxiliaryNetwork`, steps that in
    :meth:`train_auxiliary`, and names it in :meth:`saved`, so that it is checkpointed with the rest. One that changes the latents adds a map of
    :mod:`tokenizer.latent_maps` in :meth:`adapt`: the map belongs to the autoencoder, which applies it wherever it encodes. One whose network
    serves later stages names it as its :attr:`product` and saves it in :meth:`hand_on`.
    """

    name: str = ""
    note: str = ""  # a line for the terminal when training starts
    needs_gaussian: bool = False  # whether the encoder must give a mean and a log-variance
    adaptive: bool = False  # whether the weight is scaled so that the term pulls at the encoder's last layer as the reconstruction does

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def weight_at(self, step: int) -> float:
        """The weight in step ``step``; constant unless a subclass ramps it."""
        return self.weight

    def adapt(self, model: AutoencoderConfig) -> AutoencoderConfig:
        """The autoencoder that this regulariser acts on."""
        return replace(model, gaussian=True) if self.needs_gaussian else model

    @abstractmethod
    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        """The unweighted term, a scalar. Where the config says ``needs_features``, ``batch`` holds ``feature_patches`` and ``feature_global``."""

    def terms(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> dict[str, WeightedTerm]:
        """All that counts in a step, by the name that the log gives it: :meth:`term`, unless a subclass adds to it."""
        return {self.name: WeightedTerm(self.term(encoded, batch, random), self.weight_at(random.step))}

    def train_auxiliary(self, latents: Tensor, step: int) -> dict[str, Tensor]:
        """Called in every step, just before the autoencoder's weights move, with its detached float32 latents ``(B, T, C)``; returns
        metrics to log. A NonFiniteLoss that it raises, as an AuxiliaryNetwork does in all processes, makes the step be skipped."""
        return {}

    @property
    def product(self) -> nn.Module | None:
        """A network of its own that is averaged and checkpointed with the autoencoder, and so left out of :meth:`saved`."""
        return None

    def hand_on(self, run_dir: Path, autoencoder: Autoencoder, images: ImageSource) -> None:
        """Save what later stages need; called once in the first process, with averaged weights in place and the autoencoder saved.

        Args:
            run_dir: of the whole run.
            autoencoder: as it was saved.
            images: that were trained on.
        """

    def saved(self) -> dict[str, Stateful]:
        """What a resumed run needs: by default this module's state, if it has any."""
        return {self.name: self} if self.state_dict() else {}

    def describe(self) -> dict[str, Any]:
        """What a trained autoencoder remembers of it."""
        return {"name": self.name, "weight": self.weight}


def with_latent_map(model: AutoencoderConfig, name: str, section: Any) -> AutoencoderConfig:
    """``model`` with the map ``name`` of :mod:`tokenizer.latent_maps` behind those that it has, under the options in ``section``."""
    names = [] if model.latent_map.name == "none" else model.latent_map.name.split("+")
    name_of_all = "+".join(dict.fromkeys([*names, name]))
    return replace(model, latent_map=replace(model.latent_map, name=name_of_all, **{name: section}))
