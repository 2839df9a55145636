"""How likely a frozen flow finds points: its log-density by the ODE (Eq. 4), and the terms of the bound that alignment stands on (Eq. 6).

All functions take a velocity ``v(x, t)`` of single tokens, so that what happens to one token does not depend on the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from flowprior.flow.path import path_sample

Velocity = Callable[[Tensor, Tensor], Tensor]
Divergence = Literal["auto", "exact", "hutchinson"]

EXACT_UP_TO_CHANNELS = 8  # an exact divergence takes one backward pass per channel
EVALUATIONS_AT_ONCE = 1 << 15


class ElboTerms(NamedTuple):
    """The two terms of Proposition 1 at each point, in nats; ``log p(y) >= constant + correction - lambda * alignment``."""

    alignment: Tensor  # (...,) L_align(y) of Eq. 5, summed over channels
    correction: Tensor  # (...,) C(y) = -E div v
    constant: float  # E log p0(x0) = -C / 2 (1 + log 2 pi)


def velocity_and_divergence(
    velocity: Velocity, x: Tensor, t: Tensor, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``v(x, t)`` and its divergence over the last axis of ``x (..., C)``.

    Args:
        velocity: of single tokens.
        x: ``(..., C)``.
        t: broadcasts against ``x``'s leading dimensions.
        probes: ``(P, ..., C)`` of +-1 for Hutchinson's estimate, which is unbiased; without them the divergence is exact.

    Returns:
        ``(..., C)`` and ``(...)``, without gradients.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        v = velocity(x, t)
        if probes is None:
            seeds = [(..., channel) for channel in range(x.shape[-1])]
            parts = [torch.autograd.grad(v[seed].sum(), x, retain_graph=True)[0][seed] for seed in seeds]
            return v.detach(), torch.stack(parts).sum(0)
        parts = [(torch.autograd.grad((v * e).sum(), x, retain_graph=True)[0] * e).sum(-1) for e in probes]
        return v.detach(), torch.stack(parts).mean(0)


def shared_pairs(count: int, channels: int, seed: int = 0, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """``count`` (t, noise) pairs ``(P, 1)`` and ``(P, 1, C)`` of a scrambled Sobol set.

    Every pair by itself is a draw from U[0, 1] x N(0, I), so averages over them are unbiased; together they are spread evenly.
    """
    uniform = torch.quasirandom.SobolEngine(1 + channels, scramble=True, seed=seed).draw(count).clamp(1e-6, 1 - 1e-6)
    return uniform[:, :1].to(device), torch.special.ndtri(uniform[:, None, 1:]).to(device)


def _ordinary(y: Tensor) -> Tensor:
    """``y``, or a copy that autograd may look at where it was made under ``torch.inference_mode()``."""
    return y.clone() if y.is_inference() else y


@torch.no_grad()
def alignment_per_token(velocity: Velocity, y: Tensor, *, pairs: int = 64, seed: int = 0) -> Tensor:
    """Eq. 5 at each of ``y (..., C)``, summed over channels, ``(...)``; without gradients.

    All points meet the same (t, noise) pairs: what is left of the estimate's error is smooth in ``y``, and common to the
    steps of an optimisation.
    """
    return _average_over_pairs(y, pairs, seed, lambda x_t, t, wanted: (velocity(x_t, t) - wanted).square().sum(-1))


@torch.inference_mode(False)  # the divergence is a derivative, which evaluation code may ask for under inference_mode
def elbo_terms(
    velocity: Velocity,
    y: Tensor,
    *,
    pairs: int = 64,
    divergence: Divergence = "auto",
    probes: int = 1,
    seed: int = 0,
) -> ElboTerms:
    """L_align(y) and C(y) of Proposition 1 (Eq. 6) at each of ``y (..., C)``, from one pass over the same (t, noise) pairs.

    Args:
        velocity: of the frozen flow.
        y: points in its space.
        pairs: (t, noise) pairs, shared by all points.
        divergence: ``exact`` (a backward pass per channel), ``hutchinson``, or ``auto``: exact up to 8 channels.
        probes: of Hutchinson's estimate, at every pair.
        seed: of the pairs and the probes.
    """
    generator = torch.Generator(y.device).manual_seed(seed)
    draw = _probe_maker(divergence, probes, generator)

    def both(x_t: Tensor, t: Tensor, wanted: Tensor) -> Tensor:
        v, div = velocity_and_divergence(velocity, x_t, t, draw(x_t))
        return torch.stack([(v - wanted).square().sum(-1), -div], -1)

    terms = _average_over_pairs(_ordinary(y), pairs, seed, both)  # (..., 2)
    return ElboTerms(terms[..., 0], terms[..., 1], -0.5 * y.shape[-1] * (1 + math.log(2 * math.pi)))


@torch.inference_mode(False)
def log_prob(
    velocity: Velocity,
    y: Tensor,
    *,
    divergence: Divergence = "auto",
    probes: int = 1,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    method: str = "dopri5",
    seed: int = 0,
    points_at_once: int = EVALUATIONS_AT_ONCE,
    **solver_options: object,
) -> Tensor:
    """Eq. 4: ``log p(y) = log p0(x(0)) - int_0^1 div v(x(t), t) dt`` along the ODE solved backward from ``y``.

    Args:
        velocity: of the frozen flow.
        y: points in its space, ``(..., C)``.
        divergence, probes, seed: as in :func:`elbo_terms`; the probes of a point are the same all along its path.
        rtol, atol, method, solver_options: torchdiffeq's. An adaptive step is common to the points of a batch.
        points_at_once: batches of this size are solved one after the other.

    Returns:
        ``(...)``, nats, without gradients.
    """
    from torchdiffeq import odeint

    generator = torch.Generator(y.device).manual_seed(seed)
    draw = _probe_maker(divergence, probes, generator)

    def solve(points: Tensor) -> Tensor:
        e = draw(points)

        def backward(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return velocity_and_divergence(velocity, state[0], t, e)

        times = torch.tensor([1.0, 0.0], dtype=points.dtype, device=points.device)
        start = (points, points.new_zeros(len(points)))
        with torch.no_grad():
            x, change = odeint(backward, start, times, rtol=rtol, atol=atol, method=method, **solver_options)
        noise = x[-1]  # (N, C)
        # solved from 1 to 0, the integral of the divergence carries the opposite sign
        return -0.5 * (noise.square().sum(-1) + points.shape[-1] * math.log(2 * math.pi)) + change[-1]

    points = _ordinary(y).detach().reshape(-1, y.shape[-1])
    if not len(points):
        return y.new_zeros(y.shape[:-1])
    return torch.cat([solve(part) for part in points.split(points_at_once)]).view(y.shape[:-1])


def _probe_maker(kind: Divergence, probes: int, generator: torch.Generator) -> Callable[[Tensor], Tensor | None]:
    if kind not in ("auto", "exact", "hutchinson"):
        raise ValueError(f"divergence {kind!r} is unknown: write auto, exact or hutchinson")

    def draw(x: Tensor) -> Tensor | None:
        if kind == "exact" or (kind == "auto" and x.shape[-1] <= EXACT_UP_TO_CHANNELS):
            return None
        bits = torch.randint(2, (probes, *x.shape), generator=generator, device=x.device)
        return (2 * bits - 1).to(x.dtype)

    return draw


def _average_over_pairs(y: Tensor, pairs: int, seed: int, term: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Mean of ``term(x_t, t, y - x0)`` over shared (t, noise) pairs, in pieces of bounded size."""
    points = y.detach().reshape(-1, y.shape[-1])  # (N, C)
    t, noise = (part.to(y.dtype) for part in shared_pairs(pairs, y.shape[-1], seed, y.device))
    averages = []
    for part in points.split(EVALUATIONS_AT_ONCE):
        at_once = max(1, EVALUATIONS_AT_ONCE // max(1, len(part)))
        total: Tensor | float = 0.0
        for times, noises in zip(t.split(at_once), noise.split(at_once)):
            path = path_sample(noises.expand(-1, len(part), -1), part.expand(len(times), -1, -1), times)
            total = total + term(path.x_t, times, path.velocity).sum(0)
        averages.append(total / pairs)
    averaged = torch.cat(averages)
    return averaged.view(*y.shape[:-1], *averaged.shape[1:])
