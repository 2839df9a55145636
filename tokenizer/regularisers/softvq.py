"""SoftVQ-VAE: tokens that are softly assigned to codebooks (Chen et al. 2024, arXiv 2412.10958)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import option
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import AutoencoderConfig, Encoded
from tokenizer.latent_maps.segment_codebooks import SegmentCodebooksConfig
from tokenizer.regularisers.assignment_entropy import entropy_loss, over_processes
from tokenizer.regularisers.base import Regulariser, RegulariserContext, with_latent_map
from tokenizer.regularisers.feature_head import TokenHead, cosine_distance


def pooled_entropy_loss(similarity: Tensor, temperature: float, world: World) -> Tensor:
    """``E H(p) - H(E p)`` over the tokens of all segments together, with ``p = softmax(similarity / temperature)``.

    Codeword s of one codebook counts as the same as codeword s of another: the mean assignment has ``size`` entries, not codebooks x size.

    Args:
        similarity: ``(B, T, size)``, cosines.
        temperature: of the softmax.
        world: the mean assignment is over the batch of all of them.
    """
    log_share = (similarity.float() / temperature).log_softmax(-1)  # (B, T, S)
    share = log_share.exp()
    mean = over_processes(share.mean((0, 1)), world)  # (S,)
    return entropy_loss(-(share * log_share).sum(-1).mean(), mean)


@dataclass
class SoftVQConfig:
    """The softvq regulariser: it gives the autoencoder the codebooks, and keeps them in use."""

    needs_prior: ClassVar[bool] = False
    weight: float = option(1.0, "weight of the two parts together")
    codebooks: int = option(
        4, "number of codebooks, each over an equal segment of the tokens, at the latents' full width"
    )
    size: int = option(8192, "codewords in a codebook")
    temperature: float = option(0.07, "temperature of the softmax over cosine similarities that mixes the codewords")
    entropy_weight: float = option(0.01, "weight of the entropy part, which pools all codebooks")
    entropy_temperature: float = option(
        0.01,
        "temperature of the softmax in the entropy part",
        before="that of shares of the channels, which is regulariser.name=soft_pq",
    )
    alignment_weight: float = option(
        0.0,
        "weight of the cosine distance between an MLP of the latents, each token standing for as many neighbouring patches, and frozen patch "
        "features; 0: no such part",
    )
    hidden: int = option(1024, "width of that MLP")

    def __post_init__(self) -> None:
        if min(self.weight, self.entropy_weight, self.alignment_weight) < 0 or self.hidden < 1:
            raise ValueError("weights cannot be negative, and hidden is at least 1")
        if not self.entropy_temperature > 0:
            raise ValueError(f"entropy_temperature is above 0, not {self.entropy_temperature}")
        self.latent_map()

    @property
    def needs_features(self) -> bool:
        return self.alignment_weight > 0

    def latent_map(self) -> SegmentCodebooksConfig:
        return SegmentCodebooksConfig(self.codebooks, self.size, self.temperature)

    def build(self, context: RegulariserContext) -> SoftVQRegulariser:
        """The regulariser; a :class:`UserError` where tokens do not divide into segments, or patches among the tokens."""
        try:
            self.latent_map().check(context.model.tokens, context.model.channels)
            return SoftVQRegulariser(self, context)
        except ValueError as error:
            raise UserError(
                f"config section 'regulariser.softvq': {error} (regulariser.name=soft_pq has codebooks of channels)"
            ) from error


class SoftVQRegulariser(Regulariser):
    name = "softvq"

    def __init__(self, config: SoftVQConfig, context: RegulariserContext) -> None:
        super().__init__(config.weight)
        self.config, self.world, model, features = config, context.world, context.model, context.features
        self.head = (
            TokenHead(model.tokens, model.channels, features.patches, features.width, config.hidden)
            if config.alignment_weight
            else None
        )
        self.note = (
            f"softvq: {config.codebooks} codebooks of {config.size} x {model.channels}, each for {model.tokens // config.codebooks} of the "
            f"{model.tokens} tokens, as in SoftVQ-VAE; codebooks of shares of the channels are regulariser.name=soft_pq"
        )

    def adapt(self, model: AutoencoderConfig) -> AutoencoderConfig:
        return with_latent_map(model, "segment_codebooks", self.config.latent_map())

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        config = self.config
        entropy = pooled_entropy_loss(encoded.metrics["codeword_similarity"], config.entropy_temperature, self.world)
        loss = config.entropy_weight * entropy
        if self.head is not None:
            distance = cosine_distance(self.head(encoded.latents), batch["feature_patches"])
            loss = loss + config.alignment_weight * distance
        return loss

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"codebooks": self.config.codebooks, "size": self.config.size}
