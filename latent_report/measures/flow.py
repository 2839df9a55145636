"""What a flow says of latents: how much of the velocity nobody can know, and what that tells of their distribution.

``x_t = (1 - t) x0 + t x1`` with noise x0 and latents x1, and ``v = x1 - x0``. The irreducible variance of the velocity at time t is
``E Var(v | x_t)`` per channel (arXiv 2606.03578): the error of the best velocity that there is, where paths cross.
Latents come as vectors ``(N, d)``, normalised: single tokens, or all tokens of an image in a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.flow.path import path_sample
from flowprior.flow.solver import integrate
from flowprior.metrics.sliced_wasserstein import sliced_wasserstein

Velocity = Callable[[Tensor, Tensor], Tensor]
QUERIES_AT_ONCE = 1024
HEUN_STEPS = 64
DIRECTIONS = 64  # of a sliced distance
SMALLEST_SHIFT = 0.01  # in units of the latents' deviation


class TimeGrid(NamedTuple):
    """Times in (0, end) and their weights in an integral over them."""

    t: Tensor  # (times,)
    weights: Tensor  # (times,), summing to the end

    @classmethod
    def midpoints(cls, count: int, end: float = 1.0) -> TimeGrid:
        """``count`` intervals of one length, each met in its middle."""
        return cls((torch.arange(count) + 0.5) * end / count, torch.full((count,), end / count))


def gaussian_irreducible_variance(deviations: Tensor, t: Tensor) -> Tensor:
    """That of N(0, diag(s^2)) at times ``t (times,)``: the mean over axes of ``s^2 / ((1 - t)^2 + t^2 s^2)``, ``(times,)``.

    v and x_t are jointly Gaussian along each axis, with ``Var(v) = 1 + s^2`` and ``Cov(v, x_t) = t s^2 - (1 - t)``. Of other latents with
    these principal deviations it is an upper bound, the error of the best linear velocity. Its integral for s = 1 is pi / 2.
    """
    squares, t = deviations.double().square(), t.double().unsqueeze(-1)
    return (squares / ((1 - t) ** 2 + t**2 * squares)).mean(-1)


def squared_errors(velocity: Velocity, latents: Tensor, t: Tensor, seed: int = 0) -> Tensor:
    """``|| velocity(x_t, t) - (x1 - x0) ||^2 / d`` of each of ``latents (N, ..., d)`` at each time, ``(N, ..., times)``.

    The mean over held-out latents lies above the irreducible variance, by what the velocity is wrong. The noise of an image depends on the
    seed, the time and its place alone, so that two velocities meet the same points.
    """
    generator = torch.Generator().manual_seed(seed)
    errors = []
    with torch.no_grad():
        for time in t.float():
            noise = torch.randn(latents.shape, generator=generator)
            point = path_sample(noise, latents, time)
            parts = zip(point.x_t.split(QUERIES_AT_ONCE), point.velocity.split(QUERIES_AT_ONCE))
            errors.append(torch.cat([(velocity(x, time) - v).square().mean(-1) for x, v in parts]))
    return torch.stack(errors, dim=-1)


def posterior_variance(latents: Tensor, queries: Tensor, t: Tensor, seed: int = 0) -> Tensor:
    """The irreducible variance as the nearest latents tell it, with no training: ``(Q, times)`` for ``queries (Q,)``, rows of ``latents (N, d)``.

    A query is put onto its path; all latents are its neighbours, with the weights ``N(x_t; t x1, (1 - t)^2)`` that Bayes gives them. Then
    ``Var(v | x_t) = Var(x1 | x_t) / (1 - t)^2``, exactly so for a distribution that is these N points. The least error is a concave function
    of the distribution, so that on average over samples this lies below the irreducible variance; it reaches it as N grows.
    """
    points = latents.double()
    generator = torch.Generator().manual_seed(seed)
    squares = points.square().sum(1)  # (N,)
    variances = []
    for time in t.tolist():
        noise = torch.randn(len(queries), points.shape[1], generator=generator, dtype=torch.float64)
        x_t = (1 - time) * noise + time * points[queries]
        parts = []
        for part in x_t.split(QUERIES_AT_ONCE):
            scores = (time * part @ points.T - 0.5 * time**2 * squares) / (1 - time) ** 2  # (q, N)
            weights = scores.softmax(1)
            spread = weights @ squares - (weights @ points).square().sum(1)  # (q,)
            parts.append(spread.clamp(min=0) / (1 - time) ** 2 / points.shape[1])
        variances.append(torch.cat(parts))
    return torch.stack(variances, dim=1)


def divergence_from_losses(errors: Tensor, knowing_errors: Tensor, grid: TimeGrid) -> Tensor:
    """``KL(q || p)`` in nats, of each image, from two velocities' squared errors on latents of q: ``(N, times)`` each to ``(N,)``.

    ``KL(q || p) = int_0^1 t / (1 - t) E || v_q - v_p ||^2 dt`` (docs/distribution_alignment.md). The error of ``v_q``, a conditional mean,
    is uncorrelated with any function of ``x_t``, so that ``E || v_q - v_p ||^2`` is the difference of the two losses.

    With learned velocities ``w_q`` and ``w_p`` in their place, the losses of held-out latents differ by
    ``E || v_q - w_p ||^2 - E || v_q - w_q ||^2``. What ``w_q`` has not learned, or has learned by heart, makes the divergence smaller, and
    so does a path that ends before 1. An error of ``w_p`` may act either way. Where p is the product of q's own tokens, ``v_p`` is the
    projection of ``v_q`` onto functions of single tokens, so that ``E || v_q - w_p ||^2 = E || v_q - v_p ||^2 + E || v_p - w_p ||^2``: there it
    makes the divergence larger. None of this is a bound on the figure of one sample.

    Args:
        errors: of ``v_p``, summed over all channels.
        knowing_errors: of ``v_q``, likewise, at the same points.
        grid: of the times; where it ends before 1, so does the path.
    """
    return ((errors - knowing_errors).double() * (grid.t / (1 - grid.t) * grid.weights)).sum(1)


def gaussian_total_correlation(covariance: Tensor, channels: int) -> float:
    """``1/2 (sum_i log det S_ii - log det S)`` in nats, of Gaussian tokens of ``channels`` each with ``covariance (T C, T C)``."""
    covariance = covariance.double()
    starts = range(0, len(covariance), channels)
    single = sum(torch.logdet(covariance[i : i + channels, i : i + channels]) for i in starts)
    return 0.5 * (single - torch.logdet(covariance)).item()


class EulerSteps(NamedTuple):
    """How far samples of few Euler steps lie from the flow's own, and how many steps suffice."""

    tried: Tensor  # int64 (tries,)
    distances: Tensor  # (tries,)
    errors: Tensor  # (tries,) standard errors of these, over samples
    needed: float
    error: float  # standard error of that


def euler_steps(
    velocity: Velocity,
    shape: tuple[int, int],
    *,
    share: float = SMALLEST_SHIFT,
    most: int = 256,
    resamples: int = 100,
    seed: int = 0,
) -> EulerSteps:
    """How many equal Euler steps bring samples within ``share`` of the latents' deviation of the flow's own, by sliced Wasserstein distance.

    The flow's own are solved from the same noise in 64 steps of Heun's method, so that there is no floor: both are one sample moved.
    1, 2, 3, 4, 6, 8, 12, ... are tried until half of ``share`` is reached, or ``most``, a power of two. What is needed lies between the first
    that suffices and the one before, on logarithmic scales; it is ``most`` where none does. Errors are those of a bootstrap over the samples.

    Args:
        velocity: of vectors that are normalised, deviation 1.
        shape: samples and d.
    """
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def solve(steps: int, method: str) -> Tensor:
        with torch.no_grad():
            return integrate(lambda x, t: velocity(x, torch.tensor(t, dtype=torch.float32)), noise, steps, method)

    generator = torch.Generator().manual_seed(seed)
    draws = [torch.arange(len(noise)), *torch.randint(len(noise), (resamples, len(noise)), generator=generator)]
    exact, tried, distances = solve(HEUN_STEPS, "heun"), [], []  # distances: of each try those of all draws
    powers = [2**i for i in range(most.bit_length())]
    for steps in sorted({steps for power in powers for steps in (power, power * 3 // 2) if steps <= most}):
        samples = solve(steps, "euler")
        tried.append(steps)
        distances.append([sliced_wasserstein(samples[i], exact[i], DIRECTIONS) for i in draws])
        if distances[-1][0] <= share / 2:
            break
    table, steps = torch.tensor(distances, dtype=torch.float64), torch.tensor(tried)  # (tries, 1 + resamples)
    needed = _reached(table, steps, share)  # (1 + resamples,)
    return EulerSteps(steps, table[:, 0], table[:, 1:].std(1), needed[0].item(), needed[1:].std().item())


def _reached(distances: Tensor, steps: Tensor, share: float) -> Tensor:
    """Where ``distances (tries, n)`` first fall to ``share``, between two tries on logarithmic scales; the last of ``steps`` where they never do."""
    enough = distances <= share
    last = torch.where(enough.any(0), enough.int().argmax(0), len(steps) - 1)  # (n,)
    first = (last - 1).clamp(min=0)
    above, below = (distances.clamp(min=1e-12).log().gather(0, i.unsqueeze(0)).squeeze(0) for i in (first, last))
    way = ((above - math.log(share)) / (above - below).clamp(min=1e-12)).clamp(0, 1)
    lower, upper = steps[first].double().log(), steps[last].double().log()
    return (lower + way * (upper - lower)).exp()
