"""The smallest generator there can be, in a room of its own: a gaussian around the mean latents of every class."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from flowprior.run.config import option, registry_section
from generation.config import GenerationConfig
from generation.generator import Generator


@dataclass
class GaussianSampler:
    temperature: float = option(1.0, "standard deviation of samples")


@dataclass
class GaussianConfig:
    spread: float = option(0.1, "standard deviation of the means at initialisation")
    sampler: GaussianSampler = option(GaussianSampler, "", changes_result=False)

    def build(self, tokens: int, channels: int, num_classes: int) -> "Gaussians":
        return Gaussians(self, tokens, channels, num_classes)


class Gaussians(Generator):
    def __init__(self, config: GaussianConfig, tokens: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.means = nn.Parameter(config.spread * torch.randn(num_classes, tokens, channels))

    def loss(self, latents: Tensor, labels: Tensor, random: object) -> Tensor:
        return (latents - self.means[labels]).square().mean()

    def sample(self, labels: Tensor, seeds: list[int], cfg: float) -> Tensor:
        shape, temperature = self.means.shape[1:], self.config.sampler.temperature
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed % 2**63)) for seed in seeds]
        return self.means[labels] + temperature * torch.stack(noise)


GaussiansSection = registry_section("GaussiansSection", "name", "plain", {"plain": GaussianConfig}, "which is trained")


@dataclass
class GaussiansStageConfig(GenerationConfig):
    """Stage 3 with gaussians."""

    NAME = "gaussians"
    PRESETS = Path(__file__).parent  # a test has its own

    model: GaussiansSection = option(GaussiansSection, "")
