"""Flow matching (Eq. 3) and alignment (Eq. 5), with times that groups of tokens may share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.flow.path import group_size_for, path_sample
from flowprior.training.randomness import stratified_uniform

Velocity = Callable[..., Tensor]


class PathDraw(NamedTuple):
    """Random points of the path, in groups of tokens that share a time."""

    x_t: Tensor  # (..., P, n / size, size, C)
    velocity: Tensor  # alike: of the path, x1 - x0
    t: Tensor  # (..., P, n / size, 1)


def draw_on_path(
    data: Tensor,
    *,
    pairs: int = 1,
    group_size: int = 1,
    noise: Tensor | None = None,
    t: Tensor | None = None,
    t_max: float = 1.0,
    generator: torch.Generator | None = None,
) -> PathDraw:
    """Points of the path at every token of ``data (..., n, C)``; arguments as in :func:`flow_matching_loss`.

    Args:
        t_max: the times, drawn or given, are multiplied by it.

    Raises:
        ValueError: ``data`` holds no token.
    """
    if not data.numel():
        raise ValueError("there are no tokens to take the loss of")
    data = data.float()
    if data.dim() == 1:
        data = data.unsqueeze(0)
    *lead, n, channels = data.shape
    size = group_size_for(n, group_size)
    noise, t = draw_pairs(data, pairs, size, noise, t, generator)
    if t_max != 1:
        t = t * t_max
    grouped = data.view(*lead, 1, n // size, size, channels)
    t = t.unsqueeze(-1)  # (..., P, n / size, 1)
    point = path_sample(noise.view(*lead, -1, n // size, size, channels), grouped, t)  # (..., P, n / size, size, C)
    return PathDraw(point.x_t, point.velocity, t)


def flow_matching_loss(
    velocity: Velocity,
    data: Tensor,
    *,
    pairs: int = 1,
    group_size: int = 1,
    cond: Tensor | None = None,
    noise: Tensor | None = None,
    t: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Eq. 3, ``E || v((1 - t) x0 + t x1, t) - (x1 - x0) ||^2``, divided by the number of channels.

    Args:
        velocity: ``v(x, t)`` or ``v(x, t, cond)``, with ``t`` and ``cond`` broadcasting against the tokens' leading dimensions.
        data: tokens ``x1``, ``(..., n, C)``.
        pairs: (t, noise) pairs P that each token is drawn with.
        group_size: how many neighbouring tokens share a time (1: every token has its own, as in the paper). Sharing spares the
            network the modulation, most of its arithmetic, and leaves the expectation as it is. Reduced to a divisor of ``n``.
        cond: ``(..., n, K)`` for a conditional velocity; the pairs of a token share it.
        noise: ``x0``, ``(..., P, n, C)``; drawn if not given.
        t: ``(..., P, n / group)``; drawn stratified if not given.
        generator: for both draws, on ``data``'s device.

    Returns:
        A scalar. The gradient reaches whatever requires it: the network when it is trained, ``data`` when that is a latent.
    """
    draw = draw_on_path(data, pairs=pairs, group_size=group_size, noise=noise, t=t, generator=generator)
    condition = ()
    if cond is not None:
        *lead, _, groups, size, _ = draw.x_t.shape
        condition = (cond.reshape(*lead, 1, groups, size, cond.shape[-1]),)
    predicted = velocity(draw.x_t, draw.t, *condition)  # (..., P, n / size, size, C)
    return (predicted.float() - draw.velocity).square().mean()


def draw_pairs(
    data: Tensor, pairs: int, size: int, noise: Tensor | None, t: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """``noise (..., P, n, C)`` and stratified ``t (..., P, n / size)`` for ``data (..., n, C)``; what is given stays as it is."""
    *lead, n, channels = data.shape
    if noise is None:
        noise = torch.randn(*lead, pairs, n, channels, generator=generator, device=data.device)
    if t is None:
        shape = (*lead, pairs, n // size)
        t = stratified_uniform(torch.Size(shape).numel(), generator, data.device).view(shape)
    return noise, t


def alignment_loss(velocity: Velocity, latents: Tensor, **options) -> Tensor:
    """Eq. 5, ``L_align(y)``: :func:`flow_matching_loss` seen from the other side.

    The velocity is frozen (its parameters must not require gradients) and the latents ``y (..., n, C)`` stand where
    the data stood, also in the regression target ``y - x0``. Options as there.
    """
    return flow_matching_loss(velocity, latents, **options)
