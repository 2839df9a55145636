"""Drawing latents from SiT: all tokens together, along the flow's ODE or the SDE with the same marginals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from flowprior.flow.solver import integrate_over
from flowprior.run.config import Section, option
from sit.adaptive import dopri5
from sit.sde import euler_maruyama
from sit.time_shift import shift_factor, shifted

if TYPE_CHECKING:
    from sit.model import SiT


@dataclass
class SamplerConfig(Section):
    """How latents are drawn."""

    solver: Literal["euler", "heun", "midpoint", "ab2", "dopri5", "sde"] = option(
        "heun", "of the ODE with fixed steps, with adaptive ones (dopri5), or of the SDE by Euler-Maruyama"
    )
    steps: int = option(
        50, "steps; heun and midpoint evaluate the network twice in each, dopri5 chooses its own", least=1
    )
    rtol: float = option(1e-3, "dopri5: relative error that a step may make", above=0)
    atol: float = option(1e-6, "dopri5: absolute error that a step may make", above=0)
    diffusion: Literal["sigma", "sin2"] = option(
        "sigma", "sde: diffusion at time t, 1 - t (the noise's share) or sin^2(pi t)"
    )
    diffusion_scale: float = option(
        1.0, "sde: factor of the diffusion; 2 is SiT's published sampler, 0 Euler's method", least=0
    )
    last_step: float = option(0.04, "sde: length of the last step, which adds no noise")
    time_shift: str = option(
        "", "move the steps' times towards noise: a number, or auto; empty: as in training. dopri5 needs none"
    )
    cfg_interval: tuple[float, float] = option(
        (0.0, 1.0), "flow times (0 noise, 1 data) between which there is guidance; outside, the unguided half is spared"
    )
    one_batch: bool = option(True, "guided and unguided half in one batch; off: in turn, with half the memory")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.solver == "sde" and self.steps < 2:
            raise ValueError("steps is at least 2 for the sde, whose last one is apart")
        if not 0 < self.last_step < 1:
            raise ValueError(f"last_step lies in (0, 1), not at {self.last_step}")
        if len(self.cfg_interval) != 2 or not 0 <= self.cfg_interval[0] <= self.cfg_interval[1] <= 1:
            raise ValueError(f"cfg_interval is two flow times such as [0.1, 0.9], not {list(self.cfg_interval)}")
        if self.time_shift:
            shift_factor(self.time_shift, 1)

    def unread(self) -> dict[str, str]:
        """Options that change no sample, and the option beside which they do not."""
        of_dopri5, of_sde = ("rtol", "atol"), ("diffusion", "diffusion_scale", "last_step")
        fixed = ("steps", "time_shift")
        other = {"dopri5": fixed + of_sde, "sde": of_dopri5}.get(self.solver, of_dopri5 + of_sde)
        return dict.fromkeys(other, f"solver={self.solver}")


@torch.no_grad()
def sample_latents(model: SiT, labels: Tensor, seeds: list[int], cfg: float, config: SamplerConfig) -> Tensor:
    """Normalised latents ``(B, T, C)``; all noise of sample i is drawn from ``seeds[i]``."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def noise() -> Tensor:
        drawn = [torch.randn(model.tokens, model.channels, generator=g) for g in generators]
        return torch.stack(drawn).to(labels.device)  # (B, T, C)

    velocity, low, high = GuidedVelocity(model, labels, cfg, config.one_batch), *config.cfg_interval
    if config.solver == "dopri5":
        x = noise()
        # No step of its own goes across an end of the interval, where the velocity jumps.
        for start, end, guided in ((0.0, low, False), (low, high, True), (high, 1.0, False)):
            x = dopri5(partial(velocity, guided=guided), x, start, end, config.rtol, config.atol)
        return x

    def at(x: Tensor, t: float) -> Tensor:
        return velocity(x, t, guided=low <= t <= high)

    factor = shift_factor(config.time_shift or model.config.time_shift, model.tokens * model.channels)
    if config.solver == "sde":
        times = [(1 - config.last_step) * t for t in time_grid(config.steps - 1, factor)] + [1.0]
        return euler_maruyama(at, noise(), times, noise, config.diffusion, config.diffusion_scale)
    return integrate_over(at, noise(), time_grid(config.steps, factor), config.solver)


def time_grid(steps: int, factor: float) -> list[float]:
    """``steps`` + 1 times from 0 to 1, equally spaced but for the shift by ``factor``."""
    return [shifted(step / steps, factor) for step in range(steps + 1)]


class GuidedVelocity:
    """``v(x, t)`` of some or all samples of a batch, with guidance or without.

    Guidance of scale s is ``v = u + s (c - u)`` with c given the class and u without it (arXiv 2207.12598); 1 is none.

    Args:
        model: whose velocity it is.
        labels: ``(B,)``.
        cfg: guidance scale s.
        one_batch: evaluate both halves in one batch.
    """

    def __init__(self, model: SiT, labels: Tensor, cfg: float, one_batch: bool) -> None:
        self.model, self.labels, self.cfg, self.one_batch = model, labels, cfg, one_batch

    def __call__(self, x: Tensor, t: float | Tensor, rows: Tensor | None = None, *, guided: bool) -> Tensor:
        """``(n, T, C)``, float32.

        Args:
            x: ``(n, T, C)``.
            t: one time, or ``(n,)``.
            rows: which samples of the batch these are, ``(n,)``; all of them by default.
            guided: without it the half without the class is spared.
        """
        labels = self.labels if rows is None else self.labels[rows.to(x.device)]
        t = torch.as_tensor(t, dtype=torch.float32).expand(len(x)).to(x.device)
        if not guided or self.cfg == 1:
            return self.model.velocity(x, t, labels)
        dropped = torch.full_like(labels, self.model.num_classes)
        if self.one_batch:
            both = self.model.velocity(x.repeat(2, 1, 1), t.repeat(2), torch.cat([labels, dropped]))
            conditional, unconditional = both.chunk(2)
        else:
            conditional, unconditional = (self.model.velocity(x, t, half) for half in (labels, dropped))
        return unconditional + self.cfg * (conditional - unconditional)
