"""What is minimised to distil MAR's trained head into its flow map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.flow.solver import states
from flowprior.run.config import option
from flowprior.training.config import TrainConfig
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom
from mar.flow_map import FlowMap
from mar.head import FlowDrawer, MapDrawer
from mar.model import MAR
from mar.sampler import SamplerConfig

SHOWN_EVALUATIONS = (1, 2, 4)


@dataclass
class DistilConfig:
    """How the flow map of the head is distilled."""

    guidance: tuple[float, float] = option(
        (1.0, 4.0), "smallest and largest guidance scale that the map serves; in training they are drawn uniformly"
    )
    solver: Literal["euler", "ab2", "midpoint", "heun"] = option(
        "euler", "solver of the head's flow whose solutions the map learns, with its error"
    )
    solver_steps: int = option(25, "steps of that solver")
    jumps: int = option(16, "jumps along the solution of every token that a step learns from")
    from_noise: float = option(0.5, "share of jumps that start at noise")
    to_data: float = option(0.3, "share of jumps that end at data")
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")

    def __post_init__(self) -> None:
        if not (len(self.guidance) == 2 and 0 <= self.guidance[0] <= 1 <= self.guidance[1]):
            raise ValueError(f"guidance is two scales with 1 between them, such as [1, 4], not {list(self.guidance)}")
        if min(self.solver_steps, self.jumps) < 1 or not (0 <= self.from_noise <= 1 and 0 <= self.to_data <= 1):
            raise ValueError("solver_steps and jumps are at least 1, from_noise and to_data lie in [0, 1]")


class Solutions(NamedTuple):
    """Tokens on their way from noise to data, at equally many equal steps of time."""

    states: Tensor  # (B, n, steps + 1, C)
    cond: Tensor  # (B, n, K), with the class
    uncond: Tensor  # (B, n, K), without it
    scale: Tensor  # (B, 1, 1), of the guidance


class HeadDistillation(Objective):
    """Distils the frozen head of ``model`` into a flow map.

    On a solution x of the guided head's ODE, the map is what carries one state to another: X(x_s, s, t) = x_t (Boffi et al. 2025,
    arXiv 2505.18825, the flow map's definition, which its Lagrangian, Eulerian and semigroup conditions follow from). The map is fitted
    to it by least squares, the mean velocity between the states being the target:

        E || u(x_s, s, t) - (x_t - x_s) / (t - s) ||^2

    Solutions start from noise, as in sampling (Tong et al. 2025, "Flow map distillation without data", arXiv 2511.19428). Conditions are
    those of latents from the cache, of which any number of tokens is known: sampling comes through all of them.

    Args:
        model: trained; it stays as it is, and without dropout.
        normaliser: of its latents.
        config: see the class.
    """

    def __init__(self, model: MAR, normaliser: LatentNormaliser, config: DistilConfig) -> None:
        super().__init__()
        self.model, self.normaliser, self.config = model.eval().requires_grad_(False), normaliser, config
        self.flow_map = FlowMap(model.head, config.guidance)

    def train(self, mode: bool = True) -> HeadDistillation:
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        solutions = self.solve(batch, random)
        images, tokens, _, channels = solutions.states.shape
        start, end = draw_jumps(self.config, random.uniform("jumps", images, tokens, self.config.jumps, 4))  # (B, n, J)
        x_s, x_t = (
            solutions.states.gather(2, step.unsqueeze(-1).expand(-1, -1, -1, channels)) for step in (start, end)
        )
        s, t = start / self.config.solver_steps, end / self.config.solver_steps
        embedded = self.flow_map.embed_guided(solutions.cond, solutions.uncond, scale=solutions.scale).unsqueeze(2)
        found = self.flow_map.mean_velocity(x_s, s, t, embedded).float()  # (B, n, J, C)
        return StepOutput((found - (x_t - x_s) / (t - s).unsqueeze(-1)).square().mean())

    @torch.no_grad()
    def solve(self, batch: dict[str, Tensor], random: StepRandom) -> Solutions:
        """Solutions of the head's ODE for tokens of the batch, of which ``random`` draws number, order, noise and guidance."""
        model, latents, labels = self.model, self.normaliser(batch["latents"]), batch["label"]
        images, (low, high) = len(latents), self.config.guidance
        wanted_count = int(torch.randint(1, model.tokens + 1, (), generator=random.host_generator("wanted tokens")))
        order = random.uniform("order", images, model.tokens).argsort(dim=1).repeat(2, 1)  # (2 B, T)
        wanted, known = order[:, :wanted_count], order[:, wanted_count:]
        halves = torch.cat([labels, torch.full_like(labels, model.num_classes)])  # (2 B,)
        conds = model.condition(latents.repeat(2, 1, 1), halves, known, wanted, skip_unread=True)  # (2 B, n, K)
        noise = random.normal("noise", images, wanted_count, model.channels)
        scale = low + (high - low) * random.uniform("guidance", images, 1, 1)
        draw = FlowDrawer(model.head, SamplerConfig())
        velocity = draw.velocity([model.head.embed_condition(conds)], images, scale)
        solution = states(velocity, noise, self.config.solver_steps, self.config.solver)
        return Solutions(torch.stack([noise, *solution], dim=2), *conds.chunk(2), scale)

    @torch.no_grad()
    def errors(self, batch: dict[str, Tensor], random: StepRandom) -> dict[str, float]:
        """How far the map's data lies from the solver's, root mean square over its standard deviation, by the number of evaluations."""
        path, *conds, scale = self.solve(batch, random)
        draw, wanted = MapDrawer(self.flow_map, SamplerConfig()), path[:, :, -1]
        found = {count: draw(path[:, :, 0], conds, scale, count) for count in SHOWN_EVALUATIONS}
        return {
            f"error_of_{count}": ((x - wanted).square().mean() / wanted.var()).sqrt().item()
            for count, x in found.items()
        }


def draw_jumps(config: DistilConfig, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The solver's steps at which jumps start and end, both ``(...)``, from uniform numbers ``(..., 4)``.

    Starts are uniform but for those at noise, ends uniform behind the start but for those at data.
    """
    at_noise, where, span, at_data = uniform.unbind(-1)
    start = torch.where(at_noise < config.from_noise, 0, (where * config.solver_steps).long())
    end = start + 1 + (span * (config.solver_steps - start)).long()
    return start, torch.where(at_data < config.to_data, config.solver_steps, end)
