"""How far latents lie from a given flow prior: its loss, the distance to its samples, and the divergence between the two."""

from __future__ import annotations

import torch
from torch import Tensor

from flowprior.flow.online import OnlineFlow, OnlineFlowConfig
from flowprior.flow.prior import FlowPrior
from flowprior.metrics.knn import KNNDensity
from latent_report.measures.flow import TimeGrid, divergence_from_losses, squared_errors

PATH_END = 0.98  # as the online flow's own path


def alignment_of_images(prior: FlowPrior, latents: Tensor, times: int = 64, seed: int = 0) -> Tensor:
    """Eq. 5 per channel, averaged over the tokens of each image, ``(N,)``, of raw latents ``(N, T, C)``.

    At ``times`` midpoints, with noise of its own for every token, so that the images' spread tells the error of their mean.
    """
    return squared_errors(prior.velocity, latents, TimeGrid.midpoints(times).t, seed).mean((1, 2))


def log_distances(samples: Tensor, latents: Tensor) -> Tensor:
    """``log r_k`` to the k-th nearest of the prior's ``samples (M, C)``, averaged over each image's tokens, ``(N,)``.

    arXiv 2506.05240, Section 5.2: see :class:`~flowprior.metrics.knn.KNNDensity`.
    """
    distances = KNNDensity(samples).distance(latents.flatten(0, 1))
    return torch.from_numpy(distances).log().view(latents.shape[:2]).mean(1)


def divergence_from_prior(
    prior: FlowPrior, train: Tensor, held_out: Tensor, updates: int, batch: int = 128, times: int = 32, seed: int = 0
) -> Tensor:
    """``KL(q || p)`` of single tokens from the prior, in nats per token, for each held-out image, ``(N,)``.

    ``v_q`` is an online flow, which starts as the prior and makes ``updates`` steps on raw latents ``train (M, T, C)``.
    """
    online = OnlineFlow(prior, OnlineFlowConfig(), total_updates=updates, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(updates):
        online.update(train[torch.randint(len(train), (min(batch, len(train)),), generator=generator)])
    grid = TimeGrid.midpoints(times, PATH_END)
    channels = held_out.shape[-1]
    errors, knowing = (
        channels * squared_errors(velocity, held_out, grid.t, seed).mean(1) for velocity in (prior.velocity, online)
    )
    return divergence_from_losses(errors, knowing, grid)
