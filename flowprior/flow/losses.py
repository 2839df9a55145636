"""Flow matching (Eq. 3) and alignment (Eq. 5), with times that groups of tokens may share."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flowprior.flow.path import PathDraw

Velocity = Callable[..., Tensor]


def flow_matching_loss(velocity: Velocity, data: Tensor, draw: PathDraw, cond: Tensor | None = None) -> Tensor:
    """Eq. 3, ``E || v((1 - t) x0 + t x1, t) - (x1 - x0) ||^2``, divided by the number of channels.

    Args:
        velocity: ``v(x, t)`` or ``v(x, t, cond)``, with ``t`` and ``cond`` broadcasting against the tokens' leading dimensions.
        data: tokens ``x1``, ``(..., n, C)``.
        draw: noise ``x0`` and times ``t``, as :func:`flowprior.flow.path.draw_path` draws them.
        cond: ``(..., n, K)`` for a conditional velocity; the pairs of a token share it.

    Returns:
        A scalar. The gradient reaches whatever requires it: the network when it is trained, ``data`` when that is a latent.

    Raises:
        ValueError: ``data`` holds no token.
    """
    point = draw.sample(data)  # (..., P, n / size, size, C)
    condition = () if cond is None else (draw.grouped(cond).unsqueeze(-4),)  # (..., 1, n / size, size, K)
    predicted = velocity(point.x_t, draw.t.unsqueeze(-1), *condition)  # (..., P, n / size, size, C)
    return (predicted.float() - point.velocity).square().mean()


def alignment_loss(velocity: Velocity, latents: Tensor, draw: PathDraw) -> Tensor:
    """Eq. 5, ``L_align(y)``: :func:`flow_matching_loss` seen from the other side.

    The velocity is frozen (its parameters must not require gradients) and the latents ``y (..., n, C)`` stand where
    the data stood, also in the regression target ``y - x0``.
    """
    return flow_matching_loss(velocity, latents, draw)
