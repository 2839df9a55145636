"""KL divergence of a diagonal Gaussian posterior from N(0, I), the VAE's regulariser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flowprior.run.config import Section, option
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Encoded
from tokenizer.regularisers.base import Regulariser, RegulariserContext


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """``KL(N(mean, exp(logvar)) || N(0, I))`` per latent element, averaged over batch, tokens and channels.

    Where it is summed over an image's T x C numbers and averaged over images alone, as published code does, the weight w of the sum is
    ``w T C`` of this mean.
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


@dataclass
class KLConfig(Section):
    """The kl regulariser."""

    needs_prior: ClassVar[bool] = False
    weight: float = option(
        1e-3,
        "weight of the KL divergence per latent element, a mean; a weight w of the sum over an image's T x C numbers is w T C here",
        least=0,
    )

    def build(self, context: RegulariserContext) -> KLRegulariser:
        return KLRegulariser(self.weight)


class KLRegulariser(Regulariser):
    name = "kl"
    needs_gaussian = True

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        return kl_divergence(encoded.mean.float(), encoded.logvar.float())
