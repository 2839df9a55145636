"""Drawing latents from MAR: tokens in random order, a few at a time, each by solving the flow head's ODE."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flowprior.flow.solver import EVALUATIONS_PER_STEP, integrate
from flowprior.flow.velocity import VelocityMLP, time_features
from flowprior.run.config import option
from mar.attention import KeysValues, block_with_past, gather_tokens
from mar.cuda_graphs import Replayed

if TYPE_CHECKING:
    from mar.model import MAR


@dataclass
class SamplerConfig:
    """How latents are drawn. The defaults are the paper's; ``skip_unread``, ``share_first``, ``share_times``, ``one_batch`` and ``cuda_graphs``
    change speed and memory, and images by rounding only; ``encoder_every`` above 1 is an approximation."""

    ar_steps: int = option(64, "autoregressive steps; at most the number of tokens")
    head_steps: int = option(100, "steps of the flow head's solver per token")
    solver: Literal["euler", "ab2", "midpoint", "heun"] = option("euler", "solver of the flow head")
    head_evaluations: int = option(
        0,
        "evaluations of the flow head per token, in place of head_steps; an odd one of midpoint or heun is a last Euler step",
    )
    cfg_schedule: Literal["linear", "constant"] = option(
        "linear", "guidance grows with the share of known tokens, or is constant"
    )
    cfg_interval: tuple[float, float] = option(
        (0.0, 1.0),
        "flow times (0 noise, 1 data) between which the head is guided; outside, the unguided half is spared",
    )
    temperature: float = option(1.0, "scale of the flow head's noise")
    skip_unread: bool = option(False, "leave out of the decoder's last block what no drawn token reads")
    share_first: bool = option(False, "while no token is known, run the transformer once per class")
    share_times: bool = option(True, "embed each of the solver's times once for all tokens and steps")
    one_batch: bool = option(True, "guided and unguided half in one batch; off: in turn, with half the memory")
    cuda_graphs: bool = option(
        False, "on a GPU, replay the head's evaluations as CUDA graphs: one launch in place of some eighty"
    )
    encoder_every: int = option(
        1, "renew the known tokens' encoding every so many steps; between, new tokens see the old ones, not the reverse"
    )

    def __post_init__(self) -> None:
        if min(self.ar_steps, self.head_steps, self.encoder_every) < 1 or self.temperature <= 0:
            raise ValueError("ar_steps, head_steps and encoder_every are at least 1, temperature is above 0")
        if self.head_evaluations < 0:
            raise ValueError(
                f"head_evaluations is 0 (as many as head_steps takes) or more, not {self.head_evaluations}"
            )
        if len(self.cfg_interval) != 2 or not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            raise ValueError(f"cfg_interval is two flow times such as [0.1, 0.9], not {list(self.cfg_interval)}")


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
    halves = [labels] if cfg == 1 else [labels, torch.full_like(labels, model.num_classes)]
    groups = [torch.cat(halves)] if config.one_batch else halves
    contexts = [Context(model, group, config) for group in groups]
    head = Head(model.head, TimeCodes(model, config.share_times), config.cuda_graphs)
    known = 0
    for known_next in known_after_steps(tokens, min(config.ar_steps, tokens)):
        wanted = order[:, known:known_next]  # (B, n)
        conds = [context.step(latents, order[:, :known], wanted) for context in contexts]
        start = gather_tokens(noise, wanted)  # (B, n, C)
        scale = guidance(cfg, known_next, tokens, config.cfg_schedule)
        drawn = solve(head_velocity(head, conds, batch, scale, config.cfg_interval), start, config)
        latents.scatter_(1, wanted.unsqueeze(-1).expand(-1, -1, model.channels), drawn)
        known = known_next
    return latents


class Context:
    """What the transformer tells the head, step by step, about one group of labels ``(G,)``; G is a multiple of the batch.

    Args:
        model: whose transformer it is.
        labels: of the guided half, the unguided half, or both one after the other.
        config: the sampler's.
    """

    def __init__(self, model: MAR, labels: Tensor, config: SamplerConfig) -> None:
        self.model, self.labels, self.config = model, labels, config
        self.past: list[KeysValues | None] = []
        self.encoded = torch.empty(0)
        self.steps = self.encoded_known = 0

    def step(self, latents: Tensor, known: Tensor, wanted: Tensor) -> Tensor:
        """The head's condition ``(G, n, W)`` for ``latents (B, T, C)`` at ``known (B, k)``, wanted at ``(B, n)``."""
        repeat = len(self.labels) // len(latents)
        latents, known, wanted = latents.repeat(repeat, 1, 1), known.repeat(repeat, 1), wanted.repeat(repeat, 1)
        if self.config.share_first and known.shape[1] == 0:
            labels, place = self.labels.unique(return_inverse=True)
            if len(labels) < len(self.labels):
                return gather_tokens(self._of_classes(labels, latents)[place], wanted)
        skip = self.config.skip_unread
        if self.config.encoder_every == 1:
            return self.model.condition(latents, self.labels, known, wanted, skip)
        return self.model.decode(self._encode(latents, known), known, wanted, skip)

    def _of_classes(self, labels: Tensor, latents: Tensor) -> Tensor:
        """The condition at every position while none is known, once for each of ``labels (L,)``: ``(L, T, W)``."""
        everywhere = torch.arange(self.model.tokens, device=labels.device).expand(len(labels), -1)
        return self.model.condition(latents[: len(labels)], labels, everywhere[:, :0], everywhere)

    def _encode(self, latents: Tensor, known: Tensor) -> Tensor:
        """The encoder's output ``(G, buffer + k, W)``, of which only tokens new since the last step are computed in most steps."""
        # An encoding of the class alone is not worth keeping, nor counted.
        model, renew = self.model, self.encoded_known == 0 or self.steps % self.config.encoder_every == 0
        if renew:
            self.past, self.encoded_known = [None] * len(model.encoder), 0
        x = model.encoder_input(latents, self.labels, known[:, self.encoded_known :])
        x = x if renew else x[:, model.config.buffer_tokens :]  # (G, new, W)
        for number, block in enumerate(model.encoder):
            x, self.past[number] = block_with_past(block, x, self.past[number])
        x = model.encoder_norm(x)
        self.encoded = x if renew else torch.cat([self.encoded, x], dim=1)  # (G, buffer + k, W)
        self.encoded_known, self.steps = known.shape[1], self.steps + (known.shape[1] > 0)
        return self.encoded


class TimeCodes:
    """The head's embeddings of the solver's times; each is made once where ``shared``."""

    def __init__(self, model: MAR, shared: bool) -> None:
        self.head, self.shared = model.head, shared
        self.device = model.mask_token.device
        self.kept: dict[float, Tensor] = {}

    def __call__(self, t: float) -> Tensor:
        """Of the time ``t``, ``(1, 1, W)``."""
        if t in self.kept:
            return self.kept[t]
        code = self.head.time_embed(time_features(torch.full((1, 1), t, device=self.device)))
        if self.shared:
            self.kept[t] = code
        return code


class Head:
    """The flow head under conditions that are embedded once for all of its evaluations.

    Args:
        network: the head.
        times: embeds the solver's times.
        cuda_graphs: replay its evaluations, where they run on a GPU.
    """

    def __init__(self, network: VelocityMLP, times: TimeCodes, cuda_graphs: bool) -> None:
        self.network, self.times = network, times
        # Not a method: recordings go with their head, and not when the collector comes.
        evaluate = partial(_evaluate, network)
        self._evaluation = Replayed(evaluate) if cuda_graphs else evaluate

    def __call__(self, x: Tensor, t: float, embedded: Tensor) -> Tensor:
        """The velocity of ``x (B, n, C)`` at time ``t`` under each of ``embedded (G, n, W)``, G a multiple of B: ``(G, n, C)``, float32."""
        return self._evaluation(x, self.times(t), embedded)


def _evaluate(network: VelocityMLP, x: Tensor, time: Tensor, embedded: Tensor) -> Tensor:
    code = time + embedded  # (G, n, W)
    modulations = [block.modulation(code) for block in network.blocks] + [network.output.modulation(code)]
    return network.velocity(x.repeat(len(embedded) // len(x), 1, 1), modulations).float()  # (G, n, C)


def head_velocity(
    head: Head, conds: list[Tensor], batch: int, scale: float, interval: tuple[float, float]
) -> Callable[[Tensor, float], Tensor]:
    """The guided velocity ``v(x, t)`` of tokens ``x (B, n, C)``.

    Args:
        head: the flow head.
        conds: ``(B, n, W)`` alone, the two halves in one tensor ``(2 B, n, W)``, or one after the other.
        batch: B.
        scale: of the guidance within ``interval`` of flow times.
    """
    # The condition does not depend on time: it is embedded once for all evaluations.
    embedded = [head.network.embed_condition(cond) for cond in conds]
    guided = sum(map(len, conds)) == 2 * batch

    def velocity(x: Tensor, t: float) -> Tensor:
        if not guided or not interval[0] <= t <= interval[1]:
            return head(x, t, embedded[0][:batch])
        conditional, unconditional = torch.cat([head(x, t, cond) for cond in embedded]).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return velocity


def solve(velocity: Callable[[Tensor, float], Tensor], noise: Tensor, config: SamplerConfig) -> Tensor:
    """Carry ``noise`` to data with the steps, or exactly the evaluations of ``velocity``, that ``config`` asks for."""
    if not config.head_evaluations:
        return integrate(velocity, noise, config.head_steps, config.solver)
    steps, one_left = divmod(config.head_evaluations, EVALUATIONS_PER_STEP[config.solver])
    if not one_left:
        return integrate(velocity, noise, steps, config.solver)
    end = steps / (steps + 1)
    x = integrate(velocity, noise, steps, config.solver, t_end=end) if steps else noise
    return integrate(velocity, x, 1, "euler", t_start=end)
