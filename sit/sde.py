"""The SDE whose marginals are the flow's at every time, by Euler-Maruyama (SiT, arXiv 2401.08740)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

# w(t) of the SDE; the paper's time is 1 - t. Neither is infinite at either end, unlike others that it tries.
DIFFUSIONS: dict[str, Callable[[float], float]] = {
    "sigma": lambda t: 1 - t,
    "sin2": lambda t: math.sin(math.pi * t) ** 2,
}


def score(x: Tensor, velocity: Tensor, t: float) -> Tensor:
    """``grad log p_t(x)`` on the straight path, ``(t v - x) / (1 - t)``: minus the noise's mean given x, over the noise's share; t is below 1."""
    return (t * velocity - x) / (1 - t)


def euler_maruyama(
    velocity: Callable[[Tensor, float], Tensor],
    x: Tensor,
    times: Sequence[float],
    noise: Callable[[], Tensor],
    diffusion: str = "sigma",
    scale: float = 1.0,
) -> Tensor:
    """Carry ``x`` along ``dx = (v + w / 2 grad log p_t) dt + sqrt(w) dW`` from one of ``times`` to the next.

    SiT's published sampler calls half of this w its diffusion d: its drift is ``v + d grad log p_t`` and its noise ``sqrt(2 d) dW``, so
    that a d of 1 - t is a w of ``sigma`` with ``scale`` 2.

    The last step adds no noise: it goes to the data's mean given the state, which is Euler's step along the flow. The published one
    keeps the score in it.

    Args:
        velocity: ``v(x, t)`` with a Python number ``t``.
        x: state at the first of ``times``.
        times: increasing, the last one at most 1.
        noise: draws standard normal numbers of ``x``'s shape, once for every step but the last.
        diffusion: of ``DIFFUSIONS``, w.
        scale: factor of w.
    """
    for t, t_next in zip(times[:-2], times[1:-1]):
        length, w = t_next - t, scale * DIFFUSIONS[diffusion](t)
        v = velocity(x, t)
        x = x + length * (v + 0.5 * w * score(x, v, t)) + math.sqrt(w * length) * noise()
    return x + (times[-1] - times[-2]) * velocity(x, times[-2])
