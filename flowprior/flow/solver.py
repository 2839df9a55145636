"""Fixed-step solvers of ``dx/dt = v(x, t)`` between noise (t = 0) and data (t = 1)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

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
    return _last(states(velocity, x, steps, method, t_start, t_end))


def integrate_over(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Sequence[float], method: str = "euler"
) -> Tensor:
    """Carry ``x`` along the flow from one of ``times``, of which there are two at least, to the next; arguments as for :func:`integrate`.

    Steps need not be of equal length: ``ab2`` extrapolates by the ratio of a step to the one before (Hairer, Norsett and Wanner, III.5).

    Raises:
        ValueError: for an unknown method.
    """
    return _last(_states_over(velocity, x, times, method))


def states(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    steps: int = 50,
    method: str = "euler",
    t_start: float = 0.0,
    t_end: float = 1.0,
) -> Iterator[Tensor]:
    """The states that :func:`integrate` comes through, one after each step; arguments as there."""
    if steps < 1:
        raise ValueError(f"a solver takes at least one step, not {steps}")
    # At the end t_end exactly, which bounds guidance.
    times = [t_start + (t_end - t_start) * (step / steps) for step in range(steps)] + [t_end]
    return _states_over(velocity, x, times, method)


def _states_over(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, times: Sequence[float], method: str
) -> Iterator[Tensor]:
    if method not in EVALUATIONS_PER_STEP:
        raise ValueError(f"solver {method!r} is unknown: write one of {', '.join(EVALUATIONS_PER_STEP)}")
    before, length_before = None, 0.0
    for t, t_next in zip(times, times[1:]):
        length = t_next - t
        v = velocity(x, t)
        if method == "ab2":
            v, before = v if before is None else v + 0.5 * length / length_before * (v - before), v
            length_before = length
        elif method == "midpoint":
            v = velocity(x + 0.5 * length * v, t + 0.5 * length)
        elif method == "heun":
            v = 0.5 * (v + velocity(x + length * v, t_next))
        x = x + length * v
        yield x


def _last(states: Iterator[Tensor]) -> Tensor:
    [state] = deque(states, maxlen=1)
    return state


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
