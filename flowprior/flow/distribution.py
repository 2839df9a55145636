"""Distribution alignment: the Kullback-Leibler divergence of the latents' distribution from the target's, along the flow's path.

With q the latents' distribution and p the target's, ``q_t`` and ``p_t`` those of ``x_t = (1 - t) x0 + t y`` and ``v_q``, ``v_p`` the
velocities that flow matching learns of them, everything follows from two identities (derived in ``docs/distribution_alignment.md``)::

    grad log q_t - grad log p_t = t / (1 - t) (v_q - v_p)
    KL(q_t || p_t) = int_0^t s / (1 - s) E || v_q(x_s, s) - v_p(x_s, s) ||^2 ds
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.flow.losses import Velocity
from flowprior.flow.path import PathDraw


class PathWeight(NamedTuple):
    """How much the divergence at each time of the path counts: ``lambda(t)`` in ``int_0^t_max lambda(t) KL(q_t || p_t) dt``."""

    pull: Callable[[Tensor], Tensor]  # w(t) = lambda(t) t^2 / (1 - t): factor of v_q - v_p in a latent's gradient
    value: Callable[
        [Tensor, float], Tensor
    ]  # s / (1 - s) int_s^t_max lambda(t) dt: factor of |v_q - v_p|^2 in the value


def _plain_value(s: Tensor, t_max: float) -> Tensor:
    return (1 - s / t_max + torch.xlogy(s, s / t_max)) / (1 - s)


PATH_WEIGHTS = {
    # lambda = (1 - t) / t^2
    "plain": PathWeight(torch.ones_like, _plain_value),
    # lambda = 1
    "kl": PathWeight(lambda t: t**2 / (1 - t), lambda s, t_max: s * (t_max - s) / (1 - s)),
    # lambda = (1 - t)^2 / t^2
    "noise": PathWeight(
        lambda t: 1 - t,
        lambda s, t_max: (1 - s / t_max + 2 * torch.xlogy(s, s / t_max) + s * (t_max - s)) / (1 - s),
    ),
}


class DistributionTerms(NamedTuple):
    """The loss, and what tells how well ``v_q`` knows the latents it was asked about."""

    loss: Tensor  # the weighted divergence per channel, in nats; its gradient reaches the latents
    predicted: Tensor  # sum of w |v_q - v_p|^2
    observed: Tensor  # sum of w <y - x0 - v_p, v_q - v_p>; equals `predicted` in expectation where v_q is right


def distribution_loss(
    online: Velocity,
    prior: Velocity,
    latents: Tensor,
    draw: PathDraw,
    *,
    weight: str = "plain",
    t_max: float = 0.98,
) -> DistributionTerms:
    """``int_0^t_max lambda(t) KL(q_t || p_t) dt`` per channel, as an estimate whose gradient is an estimate of the divergence's own.

    Neither network is back-propagated through: the gradient at a latent is ``E w(t) (v_q - v_p)(x_t, t)``, since
    ``d x_t / d y = t`` and the dependence of ``q_t`` itself on the latents has no first-order effect.

    Args:
        online: ``v_q``, of the latents.
        prior: ``v_p``, of the target.
        latents: ``y``, tokens ``(..., n, C)``.
        draw: noise and uniform numbers in [0, 1), which times ``t_max`` are the times.
        weight: of :data:`PATH_WEIGHTS`.
        t_max: end of the path, below 1, where scores diverge.

    Raises:
        ValueError: there is no such weight, or no token.
    """
    if weight not in PATH_WEIGHTS:
        raise ValueError(f"weight {weight!r} is unknown: write one of {', '.join(PATH_WEIGHTS)}")
    pull, value = PATH_WEIGHTS[weight]
    with torch.no_grad():
        draw = PathDraw(draw.noise, t_max * draw.t)
        point, t = draw.sample(latents), draw.t.unsqueeze(-1)  # (..., P, n / size, size, C), (..., P, n / size, 1)
        v_p = prior(point.x_t, t).float()
        difference = online(point.x_t, t).float() - v_p  # (..., P, n / size, size, C)
        times = t.unsqueeze(-1)  # (..., P, n / size, 1, 1)
        drawn = pull(times) * difference
        divergence = t_max * (value(times, t_max) * difference.square()).mean()
        gradient = t_max * drawn.flatten(-3, -2).mean(-3)  # (..., n, C)
        predicted, observed = (drawn * difference).sum(), (drawn * (point.velocity - v_p)).sum()
    slope = (gradient * latents.float()).mean()
    return DistributionTerms(divergence + slope - slope.detach(), predicted, observed)
