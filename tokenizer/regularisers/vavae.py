"""VA-VAE's alignment: marginal cosine and distance-matrix similarity to frozen features (Yao et al. 2025, arXiv 2501.01423)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from flowprior.precision import full_precision
from flowprior.run.config import Section, option
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Encoded
from tokenizer.regularisers.base import Regulariser, RegulariserContext
from tokenizer.regularisers.feature_head import FeatureHead


def marginal_cosine_loss(projected: Tensor, features: Tensor, margin: float) -> Tensor:
    """Mean of ``max(0, 1 - margin - cos(z'_i, f_i))`` over positions; both ``(B, N, D)``."""
    return F.relu(1 - margin - F.cosine_similarity(projected.float(), features.float(), dim=-1)).mean()


def marginal_distance_loss(latents: Tensor, features: Tensor, margin: float) -> Tensor:
    """Mean of ``max(0, |cos(z_i, z_j) - cos(f_i, f_j)| - margin)`` over pairs of an image's positions; ``(B, N, C)`` and ``(B, N, D)``."""
    z, f = (F.normalize(x.float(), dim=-1) for x in (latents, features))
    return F.relu((z @ z.transpose(1, 2) - f @ f.transpose(1, 2)).abs() - margin).mean()  # of (B, N, N)


@dataclass
class VAVAEConfig(Section):
    """The vavae regulariser. Latents here are a sequence without places, so that positions are learned mixtures of the tokens.

    The distance matrix is that of the latents, as the paper's text has it; the released code takes it of the projected ones.
    """

    needs_prior: ClassVar[bool] = False
    needs_features: ClassVar[bool] = True
    weight: float = option(0.1, "weight of both parts; the published one, meant for adaptive=true", least=0)
    cosine_margin: float = option(0.5, "margin of the cosine similarity, as published", least=0)
    distance_margin: float = option(0.25, "margin of the distance matrices, as published", least=0)
    adaptive: bool = option(
        False, "scale the weight so that this pulls at the encoder's last layer as the reconstruction does"
    )

    def build(self, context: RegulariserContext) -> VAVAERegulariser:
        return VAVAERegulariser(self, context)


class VAVAERegulariser(Regulariser):
    name = "vavae"

    def __init__(self, config: VAVAEConfig, context: RegulariserContext) -> None:
        super().__init__(config.weight)
        self.config, self.adaptive, model, features = config, config.adaptive, context.model, context.features
        self.head = FeatureHead(model.tokens, model.channels, features.patches, features.width)

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        mixed, features = self.head.mixed(encoded.latents), batch["feature_patches"]  # (B, N, C), (B, N, D)
        with full_precision(mixed.device):
            distances = marginal_distance_loss(mixed, features, self.config.distance_margin)
        return marginal_cosine_loss(self.head.project(mixed), features, self.config.cosine_margin) + distances
