"""Flow matching whose regression target is averaged over many samples: less noise in every gradient, the same minimiser.

Eq. 3 regresses on ``x1 - x0`` of the one pair that made ``x_t``; what the network converges to is the mean of that over all pairs
that could have. Most of the training goes into averaging the difference away. In the plane it can be averaged beforehand: under
``x0 ~ N(0, I)`` the posterior weights of samples ``x1`` given ``x_t`` are Gaussian in ``(x_t - t x1) / (1 - t)``, and a batch
estimates the mean by self-normalised importance sampling ("Stable Target Field", Xu, Tong and Jaakkola, 2023). The weights see a
batch and no density. Given ``x_t`` and the batch this is exactly the mean over which of its samples made ``x_t``, so that the minimiser is
Eq. 3's at any batch size; at one given ``x_t`` it is an estimate. In many dimensions a batch holds no second sample that could have made
``x_t``, and nothing is won.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flowprior.flow.path import draw_path_of_step, group_size_for, path_sample
from flowprior.flow.velocity import VelocityMLP
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.randomness import StepRandom

SMALLEST_REMAINDER = 1e-4  # of 1 - t: a batch of distinct samples has long been told apart there


def stable_target(noise: Tensor, data: Tensor, t: Tensor, reference: Tensor) -> Tensor:
    """Mean velocity of the path through ``x_t = (1 - t) noise + t data``, averaged over ``reference``.

    Args:
        noise, data: ``(..., C)``.
        t: ``(...)`` or broadcasting against it.
        reference: samples ``(R, C)``, those of ``data`` among them.

    Returns:
        ``(..., C)``; ``data - noise`` where ``data`` alone is the reference.
    """
    path, t = path_sample(noise, data, t), t.unsqueeze(-1)
    left = (1 - t).clamp(min=SMALLEST_REMAINDER)
    # -|x_t - t x1|^2 / 2 (1 - t)^2 without the part that all samples share
    closeness = (t * (path.x_t @ reference.T) - t**2 * reference.square().sum(-1) / 2) / left**2  # (..., R)
    mean = closeness.softmax(-1) @ reference  # (..., C)
    return path.velocity + (mean - data) / left


class StableTargetObjective(Objective):
    """Eq. 3 with :func:`stable_target` over the batch; the batch is drawn fresh in every step.

    Args:
        velocity: the network that is trained.
        pairs: (t, noise) pairs per sample.
        group_size: how many samples share a time.
    """

    def __init__(self, velocity: VelocityMLP, pairs: int = 1, group_size: int = 1) -> None:
        super().__init__()
        self.velocity, self.pairs, self.group_size = velocity, pairs, group_size

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        samples = batch["features"]  # (B, C)
        size = group_size_for(len(samples), self.group_size)
        data = samples.view(-1, size, samples.shape[-1])  # (B / size, size, C)
        noise, t = draw_path_of_step(random, data, pairs=self.pairs, group_size=size)  # (B / size, P, size, C)
        data = data.unsqueeze(1)  # (B / size, 1, size, C)
        with torch.no_grad():
            target = stable_target(noise, data, t, samples)
        predicted = self.velocity(path_sample(noise, data, t).x_t, t)  # (B / size, P, size, C)
        return StepOutput((predicted.float() - target).square().mean())
