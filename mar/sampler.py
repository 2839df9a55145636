"""Drawing latents from MAR: tokens in random order, a few at a time, each by solving the flow head's ODE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flowprior.flow.solver import integrate
from flowprior.training.config import option

if TYPE_CHECKING:
    from mar.model import MAR


@dataclass
class SamplerConfig:
    """How latents are drawn. The defaults are the paper's."""

    ar_steps: int = option(64, "autoregressive steps; at most the number of tokens")
    head_steps: int = option(100, "steps of the flow head's solver per token")
    solver: Literal["euler", "midpoint", "heun"] = option("euler", "of the flow head")
    cfg_schedule: Literal["linear", "constant"] = option(
        "linear", "guidance grows with the share of known tokens, or is constant"
    )
    temperature: float = option(1.0, "scale of the flow head's noise")

    def __post_init__(self) -> None:
        if min(self.ar_steps, self.head_steps) < 1 or self.temperature <= 0:
            raise ValueError("ar_steps and head_steps are at least 1, temperature is above 0")


def known_after_steps(tokens: int, steps: int) -> list[int]:
    """How many tokens are known after each step: a cosine schedule, with one new token a step at least and all at the end."""
    known = 0
    schedule = []
    for step in range(steps):
        masked = math.floor(tokens * math.cos(math.pi / 2 * (step + 1) / steps) + 1e-9)
        known = min(max(known + 1, tokens - masked), tokens - (steps - 1 - step))
        schedule.append(known)
    return schedule


def guidance(cfg: float, known: int, tokens: int, schedule: str) -> float:
    """The guidance scale of a step after which ``known`` tokens are known."""
    return cfg if schedule == "constant" else 1 + (cfg - 1) * known / tokens


@torch.no_grad()
def sample_latents(model: MAR, labels: Tensor, seeds: list[int], cfg: float, config: SamplerConfig) -> Tensor:
    """Normalised latents ``(B, T, C)``; order and noise of sample i are drawn from ``seeds[i]``."""
    batch, tokens, device = len(labels), model.tokens, labels.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    order = torch.stack([torch.randperm(tokens, generator=g) for g in generators]).to(device)  # (B, T)
    noise = (
        torch.stack([torch.randn(tokens, model.channels, generator=g) for g in generators]).to(device)
        * config.temperature
    )
    latents = torch.zeros(batch, tokens, model.channels, device=device)
    both = torch.cat([labels, torch.full_like(labels, model.num_classes)]) if cfg != 1 else labels
    known = 0
    for known_next in known_after_steps(tokens, min(config.ar_steps, tokens)):
        wanted = order[:, known:known_next]  # (B, n)
        repeat = len(both) // batch
        cond = model.condition(
            latents.repeat(repeat, 1, 1), both, order[:, :known].repeat(repeat, 1), wanted.repeat(repeat, 1)
        )
        start = noise.gather(1, wanted.unsqueeze(-1).expand(-1, -1, model.channels))  # (B, n, C)
        scale = guidance(cfg, known_next, tokens, config.cfg_schedule)
        drawn = _draw_tokens(model, start, cond, scale, config)
        latents.scatter_(1, wanted.unsqueeze(-1).expand(-1, -1, model.channels), drawn)
        known = known_next
    return latents


def _draw_tokens(model: MAR, noise: Tensor, cond: Tensor, scale: float, config: SamplerConfig) -> Tensor:
    """Solve the head's ODE from ``noise (B, n, C)``; ``cond`` is ``(B, n, W)``, or ``(2 B, n, W)`` with the unguided half last."""
    embedded = model.head.embed_condition(cond)  # does not depend on time: once for all evaluations
    guided = len(cond) == 2 * len(noise)

    def velocity(x: Tensor, t: float) -> Tensor:
        modulations = model.head.modulations(torch.full((1, 1), t, device=x.device), embedded)
        v = model.head.velocity(torch.cat([x, x]) if guided else x, modulations).float()
        if not guided:
            return v
        conditional, unconditional = v.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return integrate(velocity, noise, config.head_steps, config.solver)
