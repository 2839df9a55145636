"""Drawing latents from MAR: tokens in random order, a few at a time, each by the flow head or by its flow map."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flowprior.run.config import Section, option
from mar.attention import gather_tokens
from mar.context import Context
from mar.head import FlowDrawer, MapDrawer, TokenDrawer

if TYPE_CHECKING:
    from mar.model import MAR

MOST_EVALUATIONS_OF_MAP = 4


@dataclass
class SamplerConfig(Section):
    """How latents are drawn. The defaults are the paper's.

    ``skip_unread``, ``share_first``, ``share_times``, ``one_batch`` and ``cuda_graphs`` change speed and memory, and images by rounding
    only. ``head: map``, ``one_pass``, and ``encoder_every`` and ``decoder_every`` above 1, are approximations.
    """

    ar_steps: int = option(64, "autoregressive steps; at most the number of tokens", least=1)
    head: Literal["flow", "map"] = option(
        "flow",
        f"flow: solve the head's ODE; map: its distilled flow map in head_evaluations, 1 to {MOST_EVALUATIONS_OF_MAP}, and the flow while training",
    )
    one_pass: bool = option(
        False,
        "guidance by one pass of the transformer, distilled to take the scale as an input, in place of two; needs head=map; two while training",
    )
    head_steps: int = option(100, "steps of the flow head's solver per token", least=1)
    solver: Literal["euler", "ab2", "midpoint", "heun"] = option("euler", "solver of the flow head")
    head_evaluations: int = option(
        0,
        "evaluations of the head per token, in place of head_steps; an odd one of midpoint or heun is a last Euler step",
    )
    head_evaluations_last: int = option(
        0,
        "evaluations once every token is known: they fall to it from head_evaluations, linearly with the share of known tokens; 0: they do not",
    )
    cfg_schedule: Literal["linear", "constant"] = option(
        "linear", "guidance grows with the share of known tokens, or is constant"
    )
    cfg_interval: tuple[float, float] = option(
        (0.0, 1.0),
        "flow times (0 noise, 1 data) between which the head is guided; outside, the unguided half is spared",
    )
    cfg_damping: float = option(
        0.0,
        "guidance falls to 1 as exp(-cfg_damping r), r the squared ratio of what it adds to the unconditional velocity; 0: it does not",
    )
    temperature: float = option(1.0, "scale of the head's noise", above=0)
    skip_unread: bool = option(False, "leave out of the decoder's last block what no drawn token reads")
    share_first: bool = option(False, "while no token is known, run the transformer once per class")
    share_times: bool = option(True, "embed each of the solver's times once for all tokens and steps")
    one_batch: bool = option(True, "guided and unguided half in one batch; off: in turn, with half the memory")
    cuda_graphs: bool = option(
        False,
        "on a GPU, replay the head's evaluations as CUDA graphs: one launch in place of some eighty",
        changes_result=False,
    )
    encoder_every: int = option(
        1,
        "renew the known tokens' encoding every so many steps; between, new tokens see the old ones, not the reverse",
        least=1,
    )
    decoder_every: int = option(
        1,
        "renew the decoder's features every so many steps; between, only new and wanted tokens are computed, beside the others' old ones",
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_evaluations < 0:
            raise ValueError(
                f"head_evaluations is 0 (as many as head_steps takes) or more, not {self.head_evaluations}"
            )
        if not 0 <= self.head_evaluations_last <= self.head_evaluations:
            raise ValueError(
                f"head_evaluations_last is 0 (as many in every step) or at most head_evaluations, {self.head_evaluations}, "
                f"not {self.head_evaluations_last}: write head_evaluations, too, from which it falls"
            )
        if len(self.cfg_interval) != 2 or not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            raise ValueError(f"cfg_interval is two flow times such as [0.1, 0.9], not {list(self.cfg_interval)}")
        if self.cfg_damping < 0:
            raise ValueError(f"cfg_damping is 0 or more, not {self.cfg_damping}")
        if self.head == "map":
            self._check_map()
        elif self.one_pass:
            raise ValueError("one_pass goes with head=map: write both, or leave it out")

    def _check_map(self) -> None:
        if not 1 <= self.head_evaluations <= MOST_EVALUATIONS_OF_MAP:
            raise ValueError(
                f"head=map takes head_evaluations=1 to {MOST_EVALUATIONS_OF_MAP}, not {self.head_evaluations}"
            )
        if self.cfg_interval != (0.0, 1.0) or self.cfg_damping:
            raise ValueError("head=map knows guidance by its scale alone: leave out cfg_interval and cfg_damping")

    def unread(self) -> dict[str, str]:
        """Options that change no sample, and the options beside which they do not."""
        if self.head == "map":
            return dict.fromkeys(("solver", "head_steps"), "head=map, which takes head_evaluations alone")
        return {"head_steps": "head_evaluations"} if self.head_evaluations else {}

    def of_flow(self) -> SamplerConfig:
        """The same without the map, with the flow head's own steps."""
        if self.head == "flow":
            return self
        return replace(self, head="flow", one_pass=False, head_evaluations=0, head_evaluations_last=0)


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


def evaluations(config: SamplerConfig, known: int, tokens: int) -> int:
    """Evaluations of the head in a step before which ``known`` tokens are known; 0: as many as its steps take.

    They fall linearly with the share of known tokens where ``config`` says so, since the distribution of a token narrows as others become
    known: diffusion step annealing (Zhao et al. 2025, "DiSA", arXiv 2505.20297).
    """
    first, last = config.head_evaluations, config.head_evaluations_last
    return math.floor(first + (last - first) * known / tokens + 0.5) if last else first


@torch.no_grad()
def sample_latents(model: MAR, labels: Tensor, seeds: list[int], cfg: float, config: SamplerConfig) -> Tensor:
    """Normalised latents ``(B, T, C)``; order and noise of sample i are drawn from ``seeds[i]``."""
    tokens, device = model.tokens, labels.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    order = torch.stack([torch.randperm(tokens, generator=g) for g in generators]).to(device)  # (B, T)
    noise = (
        torch.stack([torch.randn(tokens, model.channels, generator=g) for g in generators]).to(device)
        * config.temperature
    )
    latents = torch.zeros(len(labels), tokens, model.channels, device=device)
    transformer, draw = _networks(model, config)
    halves = [labels] if cfg == 1 or config.one_pass else [labels, torch.full_like(labels, model.num_classes)]
    groups = [torch.cat(halves)] if config.one_batch else halves
    contexts = [Context(transformer, group, config) for group in groups]
    known = 0
    for known_next in known_after_steps(tokens, min(config.ar_steps, tokens)):
        wanted = order[:, known:known_next]  # (B, n)
        scale = guidance(cfg, known_next, tokens, config.cfg_schedule)
        conds = [context.step(latents, order[:, :known], wanted, scale) for context in contexts]
        start = gather_tokens(noise, wanted)  # (B, n, C)
        drawn = draw(start, conds, scale, evaluations(config, known, tokens))
        latents.scatter_(1, wanted.unsqueeze(-1).expand(-1, -1, model.channels), drawn)
        known = known_next
    return latents


def _networks(model: MAR, config: SamplerConfig) -> tuple[MAR, TokenDrawer]:
    """The transformer, and what draws tokens under its conditions."""
    if config.one_pass:
        return model.guided.transformer, MapDrawer(model.guided.flow_map, config)
    return model, MapDrawer(model.flow_map, config) if config.head == "map" else FlowDrawer(model.head, config)
