"""Alignment of latent tokens to a frozen flow prior: each by itself (Eq. 5), their distribution to the prior's, or first one, then the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from flowprior.flow.online import OnlineFlow, OnlineFlowConfig
from flowprior.flow.path import draw_path_of_step
from flowprior.flow.prior import Alignment
from flowprior.flow.time_grid import TimeGrid
from flowprior.run.config import Section, option
from flowprior.training.checkpoint import Stateful
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Encoded
from tokenizer.losses.schedule import ramp
from tokenizer.regularisers.base import Regulariser, RegulariserContext, WeightedTerm


@dataclass
class FlowConfig(Section):
    """The flow regulariser."""

    needs_prior: ClassVar[bool] = True
    objective: Alignment = option(
        "likelihood",
        "likelihood: the paper's, every token climbs to the target's dense places; distribution: the tokens' distribution is matched "
        "with the target's; both: the sum",
    )
    weight: float = option(0.01, "weight of the alignment loss (per channel)", least=0)
    start_step: int = option(
        0, "step from which alignment counts; the online flow learns from the first step on", least=0
    )
    ramp_steps: int = option(0, "steps, from start_step on, over which alignment grows linearly to its weight", least=0)
    opening_weight: float = option(
        0.0,
        "weight of the paper's alignment (likelihood) in the steps before start_step; over ramp_steps it falls linearly to 0 while the objective "
        "grows to its own; 0: no opening",
        least=0,
    )
    pairs: int = option(4, "(t, noise) pairs per token", least=1)
    group_size: int = option(8, "tokens of an image that share a time; 1 as in the paper", least=1)
    time_grid: int = option(
        0,
        "take the times from a grid of so many, whose modulations are kept; 0: compute them anew for every time",
        least=0,
    )
    grid_steps: int = option(
        100, "steps after which the grid has another random offset, so that every time is uniform", least=1
    )
    online: OnlineFlowConfig = option(OnlineFlowConfig, "")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_grid and self.objective != "likelihood":
            raise ValueError(
                f"time_grid serves the objective likelihood, not {self.objective}: write regulariser.flow.time_grid=0"
            )
        if self.opening_weight and self.objective == "likelihood":
            raise ValueError(
                "opening_weight opens with the objective likelihood and hands over to another: write regulariser.flow.objective=distribution, or "
                "regulariser.flow.opening_weight=0"
            )
        if self.opening_weight and not self.opening_steps:
            raise ValueError(
                "opening_weight counts in no step, since the objective has its whole weight from the first one on: write "
                "regulariser.flow.start_step=<step of the handover>"
            )

    @property
    def opening_steps(self) -> int:
        """How many of the first steps have an opening."""
        return self.start_step + max(0, self.ramp_steps - 1) if self.opening_weight else 0

    def build(self, context: RegulariserContext) -> FlowRegulariser:
        return FlowRegulariser(self, context)


class FlowRegulariser(Regulariser):
    name = "flow"

    def __init__(self, config: FlowConfig, context: RegulariserContext) -> None:
        super().__init__(config.weight)
        self.config, self.prior, self.online = config, context.prior, None
        if config.objective != "likelihood":
            self.online = OnlineFlow(
                context.prior,
                config.online,
                tokens=context.model.tokens,
                total_updates=context.train.steps,
                seed=context.seed,
                micro_batches=context.train.accumulation,
                bf16=context.train.uses_bf16(context.world.device),
                world=context.world,
            )

    def share_at(self, step: int) -> float:
        """Of the objective's weight; the rest is the opening's."""
        return ramp(step, self.config.start_step, self.config.ramp_steps)

    def weight_at(self, step: int) -> float:
        return self.weight * self.share_at(step)

    def terms(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> dict[str, WeightedTerm]:
        opening = {}
        if random.step < self.config.opening_steps:
            weight = self.config.opening_weight * (1 - self.share_at(random.step))
            opening["flow_opening"] = WeightedTerm(self.opening(encoded.latents, random), weight)
        return opening | super().terms(encoded, batch, random)

    def opening(self, latents: Tensor, random: StepRandom) -> Tensor:
        """Eq. 5 at the draws that the objective likelihood takes."""
        config = self.config
        draw = draw_path_of_step(random, latents, pairs=config.pairs, group_size=config.group_size, name="alignment")
        return self.prior.alignment_loss(latents, draw)

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        config, latents, size, grid = self.config, encoded.latents, self.config.group_size, None
        if self.online is not None:
            size = self.online.group_size(latents.shape[1], size)
        draw = draw_path_of_step(random, latents, pairs=config.pairs, group_size=size, name="alignment")
        if config.time_grid:
            grid = TimeGrid(config.time_grid, random.uniform_of_period("alignment grid", config.grid_steps))
        return self.prior.alignment_loss(latents, draw, objective=config.objective, online=self.online, grid=grid)

    def train_auxiliary(self, latents: Tensor, step: int) -> dict[str, Tensor]:
        return self.online.update(latents) if self.online is not None else {}

    def saved(self) -> dict[str, Stateful]:
        return {"online_flow": self.online} if self.online is not None else {}  # the prior lies in its own folder

    def describe(self) -> dict[str, Any]:
        about = {"objective": self.config.objective, "prior": self.prior.fingerprint, "target": self.prior.target}
        opening = {"opening_weight": self.config.opening_weight} if self.config.opening_steps else {}
        return super().describe() | about | opening
