"""The autoregressive flow as a generator of latents: its options, its loss, and how samples are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowprior.run.config import option
from flowprior.training.randomness import StepRandom
from generation.generator import Generator
from simflow.flow import AutoregressiveFlow
from simflow.guidance import Guidance, GuidanceKind


@dataclass
class SamplerConfig:
    """How latents are drawn."""

    temperature: float = option(1.0, "scale of the noise")
    guidance: GuidanceKind = option(
        "starflow",
        "how a guidance scale acts on a token's Gaussian: starflow, by precision; tarflow, on mean and log-scale; mean, on the mean alone",
    )
    denoise: bool = option(
        True,
        "take off the noise that training added, by the score of the noisy density; noise_std=0 leaves nothing to do",
    )

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is above 0, not {self.temperature}")


@dataclass
class TarFlowConfig:
    """Sizes and training choices of the autoregressive flow."""

    width: int = option(128, "width of the transformers")
    depths: tuple[int, ...] = option(
        (2, 2, 2, 2),
        "layers of each block, the one nearest to the data first: equal as TarFlow's, or many in the last as STARFlow's",
    )
    heads: int = option(4, "heads of attention")
    conditioned: Literal["all", "last"] = option(
        "all",
        "blocks that see the class and are guided: all, or the last, which is nearest to the noise, as STARFlow's",
    )
    label_drop: float = option(0.1, "share of labels that are dropped, for classifier-free guidance")
    noise_std: float = option(0.0, "standard deviation of the noise that training adds to normalised latents; 0: none")
    dropout: float = option(0.0, "dropout of attention, projections and MLPs")
    token_std: float = option(0.02, "std of start tokens, positions and classes at initialisation")
    checkpoint_layers: bool = option(
        False,
        "compute the transformers' layers again in the backward pass instead of keeping their activations",
        changes_result=False,
    )
    sampler: SamplerConfig = option(SamplerConfig, "", changes_result=False)

    def __post_init__(self) -> None:
        if not self.depths or min(self.width, self.heads, *self.depths) < 1:
            raise ValueError("depths has a number for each block, and width, heads and depths are at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if not (0 <= self.label_drop < 1 and 0 <= self.dropout < 1):
            raise ValueError("label_drop and dropout lie in [0, 1)")
        if not (0 <= self.noise_std < float("inf") and self.token_std >= 0):
            raise ValueError("noise_std and token_std are finite and not negative")

    def build(self, tokens: int, channels: int, num_classes: int) -> TarFlow:
        return TarFlow(self, tokens, channels, num_classes)


class TarFlow(Generator):
    """Class-conditional autoregressive flow of normalised latents.

    Args:
        config: see the class.
        tokens, channels: T and C of the latents.
        num_classes: labels are 0 to num_classes - 1; num_classes itself stands for a dropped label.
    """

    def __init__(self, config: TarFlowConfig, tokens: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.flow = AutoregressiveFlow(
            tokens,
            channels,
            config.width,
            config.depths,
            config.heads,
            num_classes=num_classes,
            conditioned=config.conditioned,
            dropout=config.dropout,
            token_std=config.token_std,
        )
        for block in self.flow.blocks:
            block.recompute = config.checkpoint_layers

    @property
    def drops_labels(self) -> bool:
        return self.config.label_drop > 0

    @property
    def compiled_parts(self) -> list[torch.nn.Module]:
        """What ``train.compile`` compiles: the layers, whose graph all blocks share. Sampling goes through them token by token, uncompiled."""
        return [layer for block in self.flow.blocks for layer in block.layers]

    def loss(self, latents: Tensor, labels: Tensor, random: StepRandom) -> Tensor:
        """The negative log-likelihood of the latents ``(B, T, C)``, with noise of ``noise_std``, in nats per dimension."""
        images, tokens, channels = latents.shape
        if self.config.noise_std:
            latents = latents + self.config.noise_std * random.normal("flow noise", images, tokens, channels)
        dropped = random.uniform("label drop", images) < self.config.label_drop
        labels = torch.where(dropped, self.num_classes, labels)
        return -self.flow.log_prob(latents, labels).mean() / (tokens * channels)

    @torch.no_grad()
    def sample(self, labels: Tensor, seeds: list[int], cfg: float) -> Tensor:
        """Latents ``(B, T, C)``: noise of ``seeds[i]`` through the flow's inverse, without the noise of training where ``denoise`` is on."""
        flow, sampler = self.flow, self.config.sampler
        generators = (torch.Generator().manual_seed(seed) for seed in seeds)
        noise = torch.stack([torch.randn(flow.tokens, flow.channels, generator=g) for g in generators])  # (B, T, C)
        guidance = None if cfg == 1 else Guidance(sampler.guidance, cfg)
        latents = flow.inverse(noise.to(labels.device) * sampler.temperature, labels, guidance)
        if self.config.noise_std and sampler.denoise:
            latents = flow.denoised(latents, labels, self.config.noise_std)
        return latents
