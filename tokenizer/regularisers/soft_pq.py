"""Soft product quantisation: SoftVQ's assignment (arXiv 2412.10958) with a codebook for each share of the channels, as in product quantisation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowprior.run.config import option
from tokenizer.autoencoder import Encoded
from tokenizer.latent_maps.soft_codebook import SoftCodebookConfig
from tokenizer.regularisers.assignment_entropy import entropy_loss, over_processes
from tokenizer.regularisers.feature_head import FeatureHead
from tokenizer.regularisers.soft_quantiser import SoftQuantiser, SoftQuantiserConfig


class SoftPQRegulariser(SoftQuantiser):
    name = "soft_pq"
    head_type = FeatureHead

    def entropy(self, encoded: Encoded) -> Tensor:
        mean = over_processes(encoded.metrics["assignment_mean"], self.world)
        return entropy_loss(encoded.metrics["assignment_entropy"], mean)


@dataclass
class SoftPQConfig(SoftQuantiserConfig):
    """The soft_pq regulariser: it gives the autoencoder the codebooks, and keeps them in use."""

    regulariser = SoftPQRegulariser
    latent_map = "soft_codebook", SoftCodebookConfig
    codebooks: int = option(4, "number of codebooks, each over its equal share of the channels", least=1)
    entropy_weight: float = option(0.01, "weight of the entropy part, which has the same temperature", least=0)
