"""Soft product quantisation: SoftVQ's assignment (arXiv 2412.10958) with a codebook for each share of the channels, as in product quantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowprior.errors import UserError
from flowprior.run.config import option
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import AutoencoderConfig, Encoded
from tokenizer.latent_maps.soft_codebook import SoftCodebookConfig
from tokenizer.regularisers.assignment_entropy import entropy_loss, over_processes
from tokenizer.regularisers.base import Regulariser, RegulariserContext, with_latent_map
from tokenizer.regularisers.feature_head import FeatureHead, cosine_distance


@dataclass
class SoftPQConfig:
    """The soft_pq regulariser: it gives the autoencoder the codebooks, and keeps them in use."""

    needs_prior: ClassVar[bool] = False
    weight: float = option(1.0, "weight of the two parts together")
    codebooks: int = option(4, "number of codebooks, each over its equal share of the channels")
    size: int = option(8192, "codewords in a codebook")
    temperature: float = option(0.07, "of the softmax over cosine similarities")
    entropy_weight: float = option(0.01, "weight of the entropy part, which has the same temperature")
    alignment_weight: float = option(
        0.0, "weight of the cosine distance between an MLP of the latents and frozen patch features; 0: no such part"
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

    def build(self, context: RegulariserContext) -> SoftPQRegulariser:
        try:
            self.latent_map().check(context.model.tokens, context.model.channels)
        except ValueError as error:
            raise UserError(f"config section 'regulariser.soft_pq': {error}") from error
        return SoftPQRegulariser(self, context)


class SoftPQRegulariser(Regulariser):
    name = "soft_pq"

    def __init__(self, config: SoftPQConfig, context: RegulariserContext) -> None:
        super().__init__(config.weight)
        self.config, self.world, model, features = config, context.world, context.model, context.features
        self.head = (
            FeatureHead(model.tokens, model.channels, features.patches, features.width, config.hidden)
            if config.alignment_weight
            else None
        )

    def adapt(self, model: AutoencoderConfig) -> AutoencoderConfig:
        return with_latent_map(model, "soft_codebook", self.config.latent_map())

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        mean = over_processes(encoded.metrics["assignment_mean"], self.world)
        loss = self.config.entropy_weight * entropy_loss(encoded.metrics["assignment_entropy"], mean)
        if self.head is not None:
            loss = loss + self.config.alignment_weight * cosine_distance(
                self.head(encoded.latents), batch["feature_patches"]
            )
        return loss

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"codebooks": self.config.codebooks, "size": self.config.size}
