"""Small velocity networks whose output is not zero, unlike a fresh one's."""

import torch
from torch import Tensor

from flowprior import FlowPrior, VelocityMLP
from flowprior.flow.target_map import TargetMapSettings, fit_target_map
from flowprior.training.objective import StepOutput


def random_velocity(
    channels: int = 3, width: int = 16, depth: int = 2, cond_channels: int = 0, seed: int = 0
) -> VelocityMLP:
    generator = torch.Generator().manual_seed(seed)
    network = VelocityMLP(channels, width, depth, cond_channels, generator=generator)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network


def random_prior(channels: int = 3, feature_channels: int = 5, seed: int = 0, **sizes: int) -> FlowPrior:
    features = torch.randn(64, feature_channels, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    target_map = fit_target_map(features, TargetMapSettings(channels, "random", seed=seed))
    return FlowPrior(random_velocity(channels, seed=seed, **sizes), target_map, {"name": "noise"})


def values(output: StepOutput) -> dict[str, Tensor]:
    """Loss, terms and samples of a step in one dictionary."""
    return output.scalars | output.samples
