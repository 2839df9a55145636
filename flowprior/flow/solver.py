"""Fixed-step solvers of ``dx/dt = v(x, t)`` between noise (t = 0) and data (t = 1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

EVALUATIONS_PER_STEP = {"euler": 1, "ab2": 1, "midpoint": 2, "heun": 2}


def integrate(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    steps: int = 50,
    method: str = "euler",
    t_start: float = 0.0,
    t_end: float = 1.0,
) -> Tensor:
    """Carry ``x`` along the flow in exactly ``steps`` steps of equal length.

    Args:
        velocity: ``v(x, t)`` with a Python number ``t``.
        x: state at ``t_start``, any shape.
        steps: number of steps; the velocity is evaluated once (``euler``, ``ab2``) or twice (``midpoint``, ``heun``) in each.
        method: first order ``euler``; second order ``midpoint``, ``heun``, or ``ab2``, the two-step Adams-Bashforth method (Hairer, Norsett
            and Wanner, Solving ODEs I, III.1), which extrapolates from the step before and starts with an Euler step.
        t_start, t_end: from noise to data by default; swapped, the flow runs backward.

    Returns:
        The state at ``t_end``.

    Raises:
        ValueError: for an unknown method or fewer than one step.
    """
    [last] = deque(states(velocity, x, steps, method, t_start, t_end), maxlen=1)
    return last


def states(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    steps: int = 50,
    method: str = "euler",
    t_start: float = 0.0,
    t_end: float = 1.0,
) -> Iterator[Tensor]:
    """The states that :func:`integrate` comes through, one after each step; arguments as there."""
    if method not in EVALUATIONS_PER_STEP:
        raise ValueError(f"solver {method!r} is unknown: write one of {', '.join(EVALUATIONS_PER_STEP)}")
    if steps < 1:
        raise ValueError(f"a solver takes at least one step, not {steps}")
    length = (t_end - t_start) / steps

    def at(step: float) -> float:
        # At the end t_end exactly, which bounds guidance.
        return t_end if step == steps else t_start + (t_end - t_start) * (step / steps)

    before = None
    for step in range(steps):
        t = at(step)
        v = velocity(x, t)
        if method == "ab2":
            v, before = v if before is None else 1.5 * v - 0.5 * before, v
        elif method == "midpoint":
            v = velocity(x + 0.5 * length * v, at(step + 0.5))
        elif method == "heun":
            v = 0.5 * (v + velocity(x + length * v, at(step + 1)))
        x = x + length * v
        yield x


@torch.no_grad()
def sample(
    velocity: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    steps: int = 50,
    method: str = "heun",
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw ``shape`` noise and carry it to data; ``velocity`` gets its times as tensors of shape ``()``."""
    noise = torch.randn(shape, generator=generator, device=device)
    # torch.compile makes a new graph of a network for every Python number that it is called with.
    return integrate(lambda x, t: velocity(x, torch.full((), t, device=device)), noise, steps, method)
