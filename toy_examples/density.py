"""The negative log-likelihood that L_align is compared with: exact, or the paper's kernel estimate (Eq. 26-27)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.neighbors import KernelDensity
from torch import Tensor

from flowprior.training.randomness import stream_seed
from toy_examples.config import DensityConfig
from toy_examples.distributions import ToyDistribution

NLL = Callable[[Tensor], Tensor]


def negative_log_likelihood(target: ToyDistribution, config: DensityConfig) -> NLL:
    """``(N, 2)`` points to ``(N,)`` nats, as ``config.kind`` says."""
    if config.kind == "exact":
        return lambda points: -target.log_density(points)
    estimate = kernel_estimate(target, config)
    return lambda points: -estimate(points)


def kernel_samples(target: ToyDistribution, config: DensityConfig) -> Tensor:
    """``(kde_samples, 2)``: where the kernels stand."""
    return target.sample(config.kde_samples, torch.Generator().manual_seed(stream_seed(0, "kernel density")))


def kernel_estimate(target: ToyDistribution, config: DensityConfig) -> Callable[[Tensor], Tensor]:
    """Log-density by the mean of Gaussian kernels on samples of the target (Eq. 26-27)."""
    estimator = KernelDensity(kernel="gaussian", bandwidth=config.kde_bandwidth, rtol=1e-3)
    estimator.fit(kernel_samples(target, config).double().numpy())
    return lambda points: torch.from_numpy(estimator.score_samples(points.detach().double().cpu().numpy()))
