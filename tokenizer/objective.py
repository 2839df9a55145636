"""Stage 2's objective: reconstruction, perceptual distance, and regularisers of the latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from flowprior.data.images import to_model
from flowprior.training.config import option
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Autoencoder
from tokenizer.losses.perceptual import PerceptualLoss
from tokenizer.losses.pixel import PIXEL_LOSSES
from tokenizer.regularisers.base import Regulariser


@dataclass
class LossConfig:
    """Weights of the terms between images."""

    pixel: Literal["l2", "l1"] = option("l2", "difference of pixels in [-1, 1]")
    pixel_weight: float = option(1.0, "of the pixel loss")
    perceptual_weight: float = option(0.0, "of LPIPS; above 0 torchvision's VGG-16 weights are needed")
    perceptual_ramp_steps: int = option(0, "LPIPS reaches its weight linearly over so many steps")

    def __post_init__(self) -> None:
        if min(self.pixel_weight, self.perceptual_weight, self.perceptual_ramp_steps) < 0:
            raise ValueError("weights and ramps cannot be negative")


class AutoencoderObjective(nn.Module):
    """``pixel + perceptual + sum of weighted regularisers``; every term is returned raw, ``loss`` is their weighted sum.

    Args:
        autoencoder: the model that is trained.
        regularisers: see :mod:`tokenizer.regularisers`.
        config: of the image terms.
    """

    def __init__(self, autoencoder: Autoencoder, regularisers: list[Regulariser], config: LossConfig) -> None:
        super().__init__()
        self.autoencoder, self.config = autoencoder, config
        self.regularisers = nn.ModuleList(regularisers)
        self.perceptual = PerceptualLoss() if config.perceptual_weight else None

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        images = to_model(batch["image"])  # (B, 3, H, H)
        model = self.autoencoder.config
        noise = random.normal("posterior", len(images), model.tokens, model.channels) if model.gaussian else None
        reconstruction, encoded = self.autoencoder(images, noise)
        reconstruction = reconstruction.float()

        terms = {self.config.pixel: PIXEL_LOSSES[self.config.pixel](reconstruction, images)}
        loss = self.config.pixel_weight * terms[self.config.pixel]
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(reconstruction, images)
            ramp = min(1.0, (random.step + 1) / max(1, self.config.perceptual_ramp_steps))
            loss = loss + ramp * self.config.perceptual_weight * terms["lpips"]
        for regulariser in self.regularisers:
            terms[regulariser.name] = regulariser.term(encoded, batch, random)
            loss = loss + regulariser.weight_at(random.step) * terms[regulariser.name]
        return {"loss": loss, **terms, "latents": encoded.latents.detach().float()}
