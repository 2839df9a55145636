"""An adaptive ODE solver in which every sample of a batch has steps of its own.

torchdiffeq's step is common to the batch, so that an image would depend on the images that are drawn beside it; and one image after the other
leaves a GPU idle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowprior.errors import UserError

SAFETY, SMALLEST_FACTOR, LARGEST_FACTOR = 0.9, 0.2, 10.0
SHORTEST_STEP = 1e-6  # float32 does not tell shorter ones from none

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]


def dopri5(
    velocity: Velocity, x: Tensor, t_start: float = 0.0, t_end: float = 1.0, rtol: float = 1e-3, atol: float = 1e-6
) -> Tensor:
    """Carry every sample of ``x`` from ``t_start`` to ``t_end`` by the Dormand-Prince pair of order 5(4).

    Steps are chosen as Hairer, Norsett and Wanner have it, Solving ODEs I, II.4.

    Args:
        velocity: ``v(x, t, rows)`` of samples ``x (n, ...)`` at their times ``t (n,)``, float64; ``rows (n,)`` says which of the batch they are.
            Both are on the CPU, where the steps are chosen.
        x: state at ``t_start``, ``(B, ...)``.
        t_start, t_end: increasing; where they are equal, ``x`` stays.
        rtol, atol: a step is taken when its error, over ``atol + rtol |x|``, has a root mean square of at most 1.

    Raises:
        UserError: the error of some sample stays too large at any step, or is not a number.
    """
    if t_start == t_end:
        return x
    from scipy.integrate import RK45  # for its table of numbers

    nodes = [*RK45.C.tolist(), 1.0]
    weights = [*(RK45.A[stage, :stage].tolist() for stage in range(len(RK45.A))), RK45.B.tolist()]
    error_weights = RK45.E.tolist()

    result, rows = x.clone(), torch.arange(len(x))
    t = torch.full((len(x),), t_start, dtype=torch.float64)
    slope = velocity(x, t, rows)
    length = first_step(velocity, x, slope, t, t_end - t_start, rtol, atol)
    rejected = torch.zeros(len(x), dtype=torch.bool)
    while len(rows):
        length = length.minimum(t_end - t)
        slopes, h = [slope], spread(length, x)
        for node, row in zip(nodes[1:], weights[1:]):
            there = x + h * sum(weight * k for weight, k in zip(row, slopes) if weight)
            slopes.append(velocity(there, t + node * length, rows))
        difference = h * sum(weight * k for weight, k in zip(error_weights, slopes) if weight)
        error = size_of(difference, atol + rtol * x.abs().maximum(there.abs()))  # (n,)
        taken = error <= 1
        factor = (SAFETY * error**-0.2).clamp(SMALLEST_FACTOR, LARGEST_FACTOR)
        factor = torch.where(taken & ~rejected, factor, factor.clamp_max(1.0))
        if not (taken | (factor * length >= SHORTEST_STEP)).all():
            raise UserError(
                "dopri5 finds no step short enough for its rtol and atol: raise them, or write sampler.solver=heun"
            )
        moves = taken.to(x.device).view(-1, *[1] * (x.dim() - 1))
        x, slope = torch.where(moves, there, x), torch.where(moves, slopes[-1], slope)
        t = torch.where(taken, torch.where(length == t_end - t, t_end, t + length), t)
        length, rejected = length * factor, ~taken
        if (arrived := t == t_end).any():
            kept, gone = (~arrived).to(x.device), arrived.to(x.device)
            result[rows[arrived].to(x.device)] = x[gone]
            x, slope = x[kept], slope[kept]
            rows, t, length, rejected = rows[~arrived], t[~arrived], length[~arrived], rejected[~arrived]
    return result


def first_step(
    velocity: Velocity, x: Tensor, slope: Tensor, t: Tensor, longest: float, rtol: float, atol: float
) -> Tensor:
    """A first length for every sample, ``(B,)`` on the CPU, from the size of the slope and of its change (Hairer et al., II.4)."""
    rows, scale = torch.arange(len(x)), atol + rtol * x.abs()
    of_state, of_slope = size_of(x, scale), size_of(slope, scale)
    small = (of_state < 1e-5) | (of_slope < 1e-5)
    trial = torch.where(small, 1e-6, 0.01 * of_state / of_slope).clamp_max(longest)
    change = size_of(velocity(x + spread(trial, x) * slope, t + trial, rows) - slope, scale) / trial
    largest = of_slope.maximum(change)
    length = torch.where(largest <= 1e-15, (1e-3 * trial).clamp_min(1e-6), (0.01 / largest) ** 0.2)
    return length.minimum(100 * trial).clamp_max(longest)


def size_of(x: Tensor, scale: Tensor) -> Tensor:
    """Root mean square of ``x / scale``, both ``(n, ...)``, for every sample: ``(n,)``, float64, on the CPU."""
    return (x / scale).flatten(1).square().mean(1).sqrt().cpu().double()


def spread(numbers: Tensor, x: Tensor) -> Tensor:
    """A number for every sample, ``(n,)``, such that it multiplies ``x (n, ...)``."""
    return numbers.to(x.device, x.dtype).view(-1, *[1] * (x.dim() - 1))
