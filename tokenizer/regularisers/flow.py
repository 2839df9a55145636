"""Alignment of every latent token to a frozen flow prior: the method (Eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowprior.flow.path import group_size_for
from flowprior.flow.prior import FlowPrior
from flowprior.flow.time_grid import TimeGrid
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
    time_grid: int = option(
        0, "take the times from a grid of so many, whose modulations are kept; 0: compute them anew for every time"
    )
    grid_steps: int = option(100, "steps after which the grid has another random offset, so that every time is uniform")

    def __post_init__(self) -> None:
        if min(self.pairs, self.group_size, self.grid_steps) < 1 or min(self.weight, self.time_grid) < 0:
            raise ValueError(
                "pairs, group_size and grid_steps are at least 1, and weight and time_grid cannot be negative"
            )

    def build(self, context: RegulariserContext) -> FlowRegulariser:
        return FlowRegulariser(self, context.prior)


class FlowRegulariser(Regulariser):
    name = "flow"

    def __init__(self, config: FlowConfig, prior: FlowPrior) -> None:
        super().__init__(config.weight)
        self.config, self.prior = config, prior

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        config, (images, tokens, channels) = self.config, encoded.latents.shape
        size = group_size_for(tokens, config.group_size)
        noise = random.normal("alignment noise", images, config.pairs, tokens, channels)
        t = random.times("alignment t", images, config.pairs, tokens // size)
        grid = None
        if config.time_grid:
            grid = TimeGrid(config.time_grid, random.uniform_of_period("alignment grid", config.grid_steps))
        return self.prior.alignment_loss(
            encoded.latents, pairs=config.pairs, group_size=size, noise=noise, t=t, grid=grid
        )

    def saved(self) -> dict[str, Stateful]:
        return {}  # the prior is frozen: it lies in its own folder

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"prior": self.prior.fingerprint, "target": self.prior.target}
