"""SoftVQ: latents that are softly assigned to codebooks (Chen et al. 2024, arXiv 2412.10958)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from flowprior.errors import UserError
from flowprior.training.config import option
from flowprior.training.distributed import Workers
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import AutoencoderConfig, Encoded
from tokenizer.latent_maps.soft_codebook import SoftCodebookConfig
from tokenizer.regularisers.base import Regulariser, RegulariserContext
from tokenizer.regularisers.feature_head import FeatureHead, cosine_distance


def entropy_loss(assignment_entropy: Tensor, assignment_mean: Tensor) -> Tensor:
    """``E H(p) - H(E p)``, a mean over codebooks: every token sure of its codewords, all codewords in use.

    Args:
        assignment_entropy: mean entropy of the tokens' assignments, nats.
        assignment_mean: ``(codebooks, size)``, the mean assignment.
    """
    used = -torch.special.xlogy(assignment_mean, assignment_mean).sum(-1).mean()
    return assignment_entropy - used


@dataclass
class SoftVQConfig:
    """The softvq regulariser: it gives the autoencoder the codebooks, and keeps them in use."""

    needs_prior: ClassVar[bool] = False
    weight: float = option(1.0, "of the two parts together")
    codebooks: int = option(4, "each over its equal share of the channels")
    size: int = option(8192, "codewords in a codebook")
    temperature: float = option(0.07, "of the softmax over cosine similarities")
    entropy_weight: float = option(0.01, "of the entropy part")
    alignment_weight: float = option(
        0.0, "of the cosine distance between an MLP of the latents and frozen patch features; 0: no such part"
    )
    hidden: int = option(1024, "width of that MLP")

    def __post_init__(self) -> None:
        if min(self.weight, self.entropy_weight, self.alignment_weight) < 0 or self.hidden < 1:
            raise ValueError("weights cannot be negative, and hidden is at least 1")
        self.latent_map()

    @property
    def needs_features(self) -> bool:
        return self.alignment_weight > 0

    def latent_map(self) -> SoftCodebookConfig:
        return SoftCodebookConfig(self.codebooks, self.size, self.temperature)

    def build(self, context: RegulariserContext) -> SoftVQRegulariser:
        try:
            self.latent_map().check(context.model.channels)
        except ValueError as error:
            raise UserError(f"config section 'regulariser.softvq': {error}") from error
        return SoftVQRegulariser(self, context)


class SoftVQRegulariser(Regulariser):
    name = "softvq"

    def __init__(self, config: SoftVQConfig, context: RegulariserContext) -> None:
        super().__init__(config.weight)
        self.config, self.workers, model, features = config, context.workers, context.model, context.features
        self.head = (
            FeatureHead(model.tokens, model.channels, features.patches, features.width, config.hidden)
            if config.alignment_weight
            else None
        )

    def adapt(self, model: AutoencoderConfig) -> AutoencoderConfig:
        names = [] if model.latent_map.name == "none" else model.latent_map.name.split("+")
        name = "+".join(dict.fromkeys([*names, "soft_codebook"]))
        return replace(model, latent_map=replace(model.latent_map, name=name, soft_codebook=self.config.latent_map()))

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        mean = over_processes(encoded.figures["assignment_mean"], self.workers)
        loss = self.config.entropy_weight * entropy_loss(encoded.figures["assignment_entropy"], mean)
        if self.head is not None:
            loss = loss + self.config.alignment_weight * cosine_distance(
                self.head(encoded.latents), batch["feature_patches"]
            )
        return loss

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"codebooks": self.config.codebooks, "size": self.config.size}


def over_processes(local: Tensor, workers: Workers) -> Tensor:
    """The mean of ``local`` over all processes, with the gradient of this process's share; gradients are averaged afterwards, so nothing is lost."""
    if workers.count == 1:
        return local
    return local + (workers.sum(local.detach().clone()) / workers.count - local.detach())
