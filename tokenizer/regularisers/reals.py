"""ReaLS: an MLP reads frozen patch and global features from the latents (Xu et al. 2025, arXiv 2502.00359)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowprior.run.config import Section, option
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Encoded
from tokenizer.regularisers.base import Regulariser, RegulariserContext
from tokenizer.regularisers.feature_head import FeatureHead, cosine_distance


@dataclass
class RealsConfig(Section):
    """The reals regulariser. Latents here are a sequence without places, so that the MLP follows a learned mixture of the tokens."""

    needs_prior: ClassVar[bool] = False
    needs_features: ClassVar[bool] = True
    weight: float = option(0.5, "weight of the cosine distance to patch features and to the global one", least=0)
    hidden: int = option(1024, "width of the MLP", least=1)

    def build(self, context: RegulariserContext) -> RealsRegulariser:
        return RealsRegulariser(self, context)


class RealsRegulariser(Regulariser):
    name = "reals"

    def __init__(self, config: RealsConfig, context: RegulariserContext) -> None:
        super().__init__(config.weight)
        model, features = context.model, context.features
        self.patches = FeatureHead(model.tokens, model.channels, features.patches, features.width, config.hidden)
        self.whole = FeatureHead(model.tokens, model.channels, 1, features.width, config.hidden)

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        patches = cosine_distance(self.patches(encoded.latents), batch["feature_patches"])
        return patches + cosine_distance(self.whole(encoded.latents).squeeze(1), batch["feature_global"])
