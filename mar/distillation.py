"""What is minimised to distil MAR's trained head into its flow map, and guidance into its transformer."""

from __future__ import annotations

from abc import abstractmethod
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
from mar.guided import GuidedTransformer
from mar.head import FlowDrawer, MapDrawer
from mar.model import MAR
from mar.sampler import SamplerConfig

SHOWN_EVALUATIONS = (1, 2, 4)


@dataclass
class DistilConfig:
    """How the flow map of the head, or the guidance of the transformer, is distilled."""

    guidance: tuple[float, float] = option(
        (1.0, 4.0), "smallest and largest guidance scale that it serves; in training they are drawn uniformly"
    )
    solver: Literal["euler", "ab2", "midpoint", "heun"] = option(
        "ab2", "solver of the head's flow whose solutions the map learns, with its error"
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


class Masking(NamedTuple):
    """Latents of which some tokens are known and others wanted: what :meth:`MAR.condition` is told."""

    latents: Tensor  # (B, T, C), normalised
    labels: Tensor  # (B,)
    known: Tensor  # (B, T - n)
    wanted: Tensor  # (B, n)


class Solutions(NamedTuple):
    """Tokens on their way from noise to data, at equally many equal steps of time."""

    states: Tensor  # (B, n, steps + 1, C)
    masking: Masking  # what they are solutions of
    cond: Tensor  # (B, n, K), with the class
    uncond: Tensor  # (B, n, K), without it
    scale: Tensor  # (B, 1, 1), of the guidance


class Distillation(Objective):
    """Fits a flow map, under conditions that a subclass gives, to the frozen ``model`` with guidance.

    On a solution x of the guided head's ODE, the map is what carries one state to another: X(x_s, s, t) = x_t (Boffi et al. 2025,
    arXiv 2505.18825, the flow map's definition, which its Lagrangian, Eulerian and semigroup conditions follow from). The map is fitted
    to it by least squares, the mean velocity between the states being the target:

        E || u(x_s, s, t) - (x_t - x_s) / (t - s) ||^2

    Solutions start from noise, as in sampling (Tong et al. 2025, "Flow map distillation without data", arXiv 2511.19428). Conditions are
    those of latents from the cache, of which any number of tokens is known: sampling comes through all of them.

    Args:
        model: trained; it stays as it is.
        flow_map: what is fitted.
        normaliser: of the model's latents.
        config: see the class.
    """

    def __init__(self, model: MAR, flow_map: FlowMap, normaliser: LatentNormaliser, config: DistilConfig) -> None:
        super().__init__()
        self.model, self.normaliser, self.config = model.eval().requires_grad_(False), normaliser, config
        self.flow_map = flow_map

    @property
    @abstractmethod
    def product(self) -> FlowMap | GuidedTransformer:
        """What is trained, and handed on."""

    @abstractmethod
    def conditions(self, solutions: Solutions) -> list[Tensor]:
        """What the map is told of the tokens of ``solutions``: one ``(B, n, K)`` or two."""

    def train(self, mode: bool = True) -> Distillation:
        """No part of it has dropout."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        solutions = self.solve(batch, random)
        images, tokens, _, channels = solutions.states.shape
        start, end = draw_jumps(self.config, random.uniform("jumps", images, tokens, self.config.jumps, 4))  # (B, n, J)
        x_s, x_t = (
            solutions.states.gather(2, step.unsqueeze(-1).expand(-1, -1, -1, channels)) for step in (start, end)
        )
        s, t = start / self.config.solver_steps, end / self.config.solver_steps
        conds = self.conditions(solutions)
        embedded = self.flow_map.embed_guided(*conds, scale=solutions.scale).unsqueeze(2)  # (B, n, 1, W)
        found = self.flow_map.mean_velocity(x_s, s, t, embedded).float()  # (B, n, J, C)
        return StepOutput((found - (x_t - x_s) / (t - s).unsqueeze(-1)).square().mean())

    def masking(self, batch: dict[str, Tensor], random: StepRandom) -> Masking:
        """The batch with tokens that are known and wanted, of which ``random`` draws number and order."""
        latents, tokens = self.normaliser(batch["latents"]), self.model.tokens
        wanted = int(torch.randint(1, tokens + 1, (), generator=random.host_generator("wanted tokens")))
        order = random.uniform("order", len(latents), tokens).argsort(dim=1)  # (B, T)
        return Masking(latents, batch["label"], known=order[:, wanted:], wanted=order[:, :wanted])

    @torch.no_grad()
    def solve(self, batch: dict[str, Tensor], random: StepRandom) -> Solutions:
        """Solutions of the head's ODE for the batch's wanted tokens, of which ``random`` draws noise and guidance."""
        model, masking = self.model, self.masking(batch, random)
        (images, wanted_count), (low, high) = masking.wanted.shape, self.config.guidance
        halves = torch.cat([masking.labels, torch.full_like(masking.labels, model.num_classes)])  # (2 B,)
        known, wanted = masking.known.repeat(2, 1), masking.wanted.repeat(2, 1)
        conds = model.condition(masking.latents.repeat(2, 1, 1), halves, known, wanted, skip_unread=True)  # (2 B, n, K)
        noise = random.normal("noise", images, wanted_count, model.channels)
        scale = low + (high - low) * random.uniform("guidance", images, 1, 1)
        draw = FlowDrawer(model.head, SamplerConfig())
        velocity = draw.velocity([model.head.embed_condition(conds)], images, scale)
        solution = states(velocity, noise, self.config.solver_steps, self.config.solver)
        return Solutions(torch.stack([noise, *solution], dim=2), masking, *conds.chunk(2), scale)

    @torch.no_grad()
    def errors(self, batch: dict[str, Tensor], random: StepRandom) -> dict[str, float]:
        """How far the map's data lies from the solver's, root mean square over its standard deviation, by the number of evaluations."""
        solutions = self.solve(batch, random)
        conds, draw = self.conditions(solutions), MapDrawer(self.flow_map, SamplerConfig())
        noise, wanted = solutions.states[:, :, 0], solutions.states[:, :, -1]
        found = {count: draw(noise, conds, solutions.scale, count) for count in SHOWN_EVALUATIONS}
        return {
            f"error_of_{count}": ((x - wanted).square().mean() / wanted.var()).sqrt().item()
            for count, x in found.items()
        }


class HeadDistillation(Distillation):
    """Distils the frozen head of ``model`` into a flow map, which has both of the transformer's conditions."""

    def __init__(self, model: MAR, normaliser: LatentNormaliser, config: DistilConfig) -> None:
        super().__init__(model, FlowMap(model.head, config.guidance), normaliser, config)

    @property
    def product(self) -> FlowMap:
        return self.flow_map

    def conditions(self, solutions: Solutions) -> list[Tensor]:
        return [solutions.cond, solutions.uncond]


class GuidanceDistillation(Distillation):
    """Distils the guidance of the frozen ``model`` into a copy of its transformer, and the copy of its ``flow_map`` that follows it.

    Both learn together what the map alone learnt, under the one condition that the copy makes of class and scale.
    """

    def __init__(self, model: MAR, flow_map: FlowMap, normaliser: LatentNormaliser, config: DistilConfig) -> None:
        guided = GuidedTransformer(model, flow_map, config.guidance)
        super().__init__(model, guided.flow_map, normaliser, config)
        self.guided = guided

    @property
    def product(self) -> GuidedTransformer:
        return self.guided

    def conditions(self, solutions: Solutions) -> list[Tensor]:
        scale = solutions.scale[:, :, 0]  # (B, 1)
        return [self.guided.transformer.condition(*solutions.masking, skip_unread=True, scale=scale)]


def draw_jumps(config: DistilConfig, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The solver's steps at which jumps start and end, both ``(...)``, from uniform numbers ``(..., 4)``.

    Starts are uniform but for those at noise, ends uniform behind the start but for those at data.
    """
    at_noise, where, span, at_data = uniform.unbind(-1)
    start = torch.where(at_noise < config.from_noise, 0, (where * config.solver_steps).long())
    end = start + 1 + (span * (config.solver_steps - start)).long()
    return start, torch.where(at_data < config.to_data, config.solver_steps, end)
