"""Drawing tokens given their conditions: by solving the flow head's ODE, or by a few jumps of its flow map."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from flowprior.flow.solver import EVALUATIONS_PER_STEP, integrate
from flowprior.flow.velocity import VelocityMLP, time_features
from mar.cuda_graphs import Replayed

if TYPE_CHECKING:
    from mar.flow_map import FlowMap
    from mar.sampler import SamplerConfig


class TokenDrawer(Protocol):
    """From noise to tokens."""

    def __call__(self, noise: Tensor, conds: list[Tensor], scale: float | Tensor, evaluations: int) -> Tensor:
        """Tokens ``(B, n, C)`` from ``noise (B, n, C)``.

        Args:
            noise: where they start.
            conds: ``(B, n, W)`` alone, the two halves in one tensor ``(2 B, n, W)``, or one after the other.
            scale: of the guidance, a number or ``(B, 1, 1)``.
            evaluations: of the network; 0: as many as the sampler's steps take.
        """
        ...


class FlowDrawer:
    """Draws tokens by solving the head's ODE.

    Args:
        network: the head.
        config: the sampler's.
    """

    def __init__(self, network: VelocityMLP, config: SamplerConfig) -> None:
        self.network, self.config = network, config
        self.head = Head(network, partial(_time_code, network), config)

    def __call__(self, noise: Tensor, conds: list[Tensor], scale: float | Tensor, evaluations: int) -> Tensor:
        # The condition does not depend on time: it is embedded once for all evaluations.
        embedded = [self.network.embed_condition(cond) for cond in conds]
        return solve(self.velocity(embedded, len(noise), scale), noise, evaluations, self.config)

    def velocity(self, embedded: list[Tensor], batch: int, scale: float | Tensor) -> Callable[[Tensor, float], Tensor]:
        """The guided velocity ``v(x, t)`` of tokens ``x (B, n, C)``, B the ``batch``, under embedded conditions."""
        config = self.config
        guided = sum(map(len, embedded)) == 2 * batch

        def velocity(x: Tensor, t: float) -> Tensor:
            if not guided or not config.cfg_interval[0] <= t <= config.cfg_interval[1]:
                return self.head(x, (t,), embedded[0][:batch])
            conditional, unconditional = torch.cat([self.head(x, (t,), cond) for cond in embedded]).chunk(2)
            return guide(conditional, unconditional, scale, config.cfg_damping)

        return velocity


class MapDrawer:
    """Draws tokens by jumps of a flow map over equal spans of time, one evaluation each, guidance included.

    Args:
        network: the map.
        config: the sampler's.
    """

    def __init__(self, network: FlowMap, config: SamplerConfig) -> None:
        self.network = network
        self.head = Head(network.velocity, network.time_code, config)

    def __call__(self, noise: Tensor, conds: list[Tensor], scale: float | Tensor, evaluations: int) -> Tensor:
        halves = conds if len(conds) == 2 else conds[0].split(len(noise))
        x, embedded = noise, self.network.embed_guided(*halves, scale=scale)
        for step in range(evaluations):
            times = step / evaluations, (step + 1) / evaluations
            x = x + self.head(x, times, embedded) / evaluations
        return x


class Head:
    """A network on tokens under conditions that are embedded once for all of its evaluations.

    Args:
        network: the head, or that of a map's mean velocity.
        embed_times: code ``(1, 1, W)`` of times ``(1, 1)``, as many as the network takes.
        config: the sampler's: whether codes of times are kept, and whether a GPU replays the evaluations.
    """

    def __init__(self, network: VelocityMLP, embed_times: Callable[..., Tensor], config: SamplerConfig) -> None:
        self.embed_times, self.shared = embed_times, config.share_times
        self.device = network.input.weight.device
        self.kept: dict[tuple[float, ...], Tensor] = {}
        # Not a method: recordings go with their head, and not when the collector comes.
        evaluate = partial(_evaluate, network)
        self._evaluation = Replayed(evaluate) if config.cuda_graphs else evaluate

    def __call__(self, x: Tensor, times: tuple[float, ...], embedded: Tensor) -> Tensor:
        """The velocity of ``x (B, n, C)`` at ``times`` under each of ``embedded (G, n, W)``, G a multiple of B: ``(G, n, C)``, float32."""
        return self._evaluation(x, self.time_code(times), embedded)

    def time_code(self, times: tuple[float, ...]) -> Tensor:
        """Of these times, ``(1, 1, W)``; made once where the sampler shares it."""
        if times in self.kept:
            return self.kept[times]
        code = self.embed_times(*(torch.full((1, 1), t, device=self.device) for t in times))
        if self.shared:
            self.kept[times] = code
        return code


def _time_code(network: VelocityMLP, t: Tensor) -> Tensor:
    return network.time_embed(time_features(t))


def _evaluate(network: VelocityMLP, x: Tensor, time: Tensor, embedded: Tensor) -> Tensor:
    code = time + embedded  # (G, n, W)
    modulations = [block.modulation(code) for block in network.blocks] + [network.output.modulation(code)]
    return network.velocity(x.repeat(len(embedded) // len(x), 1, 1), modulations).float()  # (G, n, C)


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor, damping: float) -> Tensor:
    """``v_u + w (v_c - v_u)`` of velocities ``(B, n, C)``, with w damped where conditional and unconditional differ by much.

    ``w = 1 + (scale - 1) exp(-damping r)`` with ``r = |v_c - v_u|^2 / |v_u|^2`` of each token: the ratio-aware guidance of Zhu et al. 2025
    (arXiv 2508.03442), whose ratio is an image's. Without damping, w is the scale.
    """
    difference = conditional - unconditional
    if damping:
        ratio = difference.square().sum(-1, keepdim=True) / unconditional.square().sum(-1, keepdim=True).clamp(
            min=1e-12
        )
        scale = 1 + (scale - 1) * torch.exp(-damping * ratio)  # (B, n, 1)
    return unconditional + scale * difference


def solve(
    velocity: Callable[[Tensor, float], Tensor], noise: Tensor, evaluations: int, config: SamplerConfig
) -> Tensor:
    """Carry ``noise`` to data with exactly so many ``evaluations`` of ``velocity``; 0: with the steps of ``config``."""
    if not evaluations:
        return integrate(velocity, noise, config.head_steps, config.solver)
    steps, one_left = divmod(evaluations, EVALUATIONS_PER_STEP[config.solver])
    if not one_left:
        return integrate(velocity, noise, steps, config.solver)
    end = steps / (steps + 1)
    x = integrate(velocity, noise, steps, config.solver, t_end=end) if steps else noise
    return integrate(velocity, x, 1, "euler", t_start=end)
