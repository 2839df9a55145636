"""What regularisers that give the autoencoder soft codebooks have in common: the codebooks, their use, and an alignment to frozen features."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from flowprior.errors import UserError
from flowprior.run.config import option
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import AutoencoderConfig, Encoded
from tokenizer.latent_maps.codebooks import CodebooksConfig
from tokenizer.regularisers.base import Regulariser, RegulariserContext, with_latent_map
from tokenizer.regularisers.feature_head import cosine_distance


@dataclass
class SoftQuantiserConfig(CodebooksConfig):
    """Codebooks, and the weights of both parts."""

    needs_prior: ClassVar[bool] = False
    regulariser: ClassVar[type[SoftQuantiser]]
    latent_map: ClassVar[tuple[str, type[CodebooksConfig]]]  # that holds them, of tokenizer.latent_maps.LATENT_MAPS
    weight: float = option(1.0, "weight of the two parts together", least=0)
    entropy_weight: float = option(0.01, "weight of the entropy part", least=0)
    alignment_weight: float = option(
        0.0,
        "weight of the cosine distance between an MLP of the latents and frozen patch features; 0: no such part",
        least=0,
    )
    hidden: int = option(1024, "width of that MLP", least=1)

    @property
    def needs_features(self) -> bool:
        return self.alignment_weight > 0

    def map_config(self) -> CodebooksConfig:
        return self.latent_map[1](self.codebooks, self.size, self.temperature)

    def build(self, context: RegulariserContext) -> SoftQuantiser:
        """The regulariser; a :class:`UserError` where the latents do not divide into the codebooks, or patches among the tokens."""
        try:
            self.map_config().check(context.model.tokens, context.model.channels)
            return self.regulariser(self, context)
        except ValueError as error:
            raise UserError(f"config section 'regulariser.{self.regulariser.name}': {error}") from error


class SoftQuantiser(Regulariser):
    """``entropy_weight entropy + alignment_weight distance`` of latents behind soft codebooks.

    A subclass says what the entropy part is, and which ``head`` reads the features from the latents.
    """

    head_type: type[nn.Module]

    def __init__(self, config: SoftQuantiserConfig, context: RegulariserContext) -> None:
        super().__init__(config.weight)
        self.config, self.world, self.head = config, context.world, None
        if config.alignment_weight:
            model, features = context.model, context.features
            sizes = model.tokens, model.channels, features.patches, features.width
            self.head = self.head_type(*sizes, config.hidden)

    def adapt(self, model: AutoencoderConfig) -> AutoencoderConfig:
        return with_latent_map(model, self.config.latent_map[0], self.config.map_config())

    @abstractmethod
    def entropy(self, encoded: Encoded) -> Tensor:
        """``E H(p) - H(E p)`` of the assignments p: small where every token is sure and all codewords are in use."""

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        loss = self.config.entropy_weight * self.entropy(encoded)
        if self.head is not None:
            distance = cosine_distance(self.head(encoded.latents), batch["feature_patches"])
            loss = loss + self.config.alignment_weight * distance
        return loss

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"codebooks": self.config.codebooks, "size": self.config.size}
