"""Alignment of every latent token to a frozen flow prior: the method (Eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowprior.flow.path import group_size_for
from flowprior.flow.prior import FlowPrior
from flowprior.training.checkpoint import Stateful
from flowprior.training.config import option
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Encoded
from tokenizer.regularisers.base import Regulariser, RegulariserContext


@dataclass
class FlowConfig:
    """The flow regulariser."""

    needs_prior: ClassVar[bool] = True
    weight: float = option(0.01, "of the alignment loss (per channel)")
    pairs: int = option(4, "(t, noise) pairs per token")
    group_size: int = option(8, "tokens of an image that share a time; 1 as in the paper")

    def __post_init__(self) -> None:
        if min(self.pairs, self.group_size) < 1 or self.weight < 0:
            raise ValueError("pairs and group_size are at least 1, and weight cannot be negative")

    def build(self, context: RegulariserContext) -> FlowRegulariser:
        return FlowRegulariser(self, context.prior)


class FlowRegulariser(Regulariser):
    name = "flow"

    def __init__(self, config: FlowConfig, prior: FlowPrior) -> None:
        super().__init__(config.weight)
        self.prior, self.pairs, self.group_size = prior, config.pairs, config.group_size

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        images, tokens, channels = encoded.latents.shape
        size = group_size_for(tokens, self.group_size)
        noise = random.normal("alignment noise", images, self.pairs, tokens, channels)
        t = random.times("alignment t", images, self.pairs, tokens // size)
        return self.prior.alignment_loss(encoded.latents, pairs=self.pairs, group_size=size, noise=noise, t=t)

    def saved(self) -> dict[str, Stateful]:
        return {}  # the prior is frozen: it lies in its own folder

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"prior": self.prior.fingerprint, "target": self.prior.target}
