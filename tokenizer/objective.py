"""Stage 2's objective: reconstruction, perceptual distance, a discriminator's judgement, and regularisers of the latents."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flowprior.data.images import to_model
from flowprior.distributed import World
from flowprior.run.config import Section, option
from flowprior.training.checkpoint import Stateful
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Autoencoder, LatentNoise
from tokenizer.features import FeatureModel
from tokenizer.losses.adversarial import AdversarialConfig, Adversary
from tokenizer.losses.gradients import adaptive_weight, sample_gradient_norm
from tokenizer.losses.perceptual import PerceptualLoss
from tokenizer.losses.pixel import PIXEL_LOSSES
from tokenizer.losses.schedule import ramp
from tokenizer.regularisers.base import Regulariser


@dataclass
class LossConfig(Section):
    """Weights of the terms between images."""

    pixel: Literal["l2", "l1"] = option("l2", "how pixels in [-1, 1] are compared")
    pixel_weight: float = option(1.0, "weight of the pixel loss", least=0)
    perceptual_weight: float = option(0.0, "weight of LPIPS; above 0 torchvision's VGG-16 weights are needed", least=0)
    perceptual_start_step: int = option(0, "step from which LPIPS counts", least=0)
    perceptual_ramp_steps: int = option(
        0,
        "steps, from perceptual_start_step on, over which LPIPS grows linearly to its weight",
        least=0,
    )
    perceptual_weights: str = option(
        "", "file of VGG-16's weights, where it is not in torch's hub folder", changes_result=False
    )
    adversarial: AdversarialConfig = option(AdversarialConfig, "")
    latent_noise_std: float = option(
        0.0,
        "noise on what the decoder is given, in the latents' own units: for every image a level is drawn from |N(0, latent_noise_std^2)|",
        least=0,
        below=math.inf,
    )
    latent_noise_kind: Literal["added", "interpolated"] = option(
        "added",
        "added: on top of the latents, as above; interpolated: the decoder is given (1 - g) z + g n, with g from U(0, 1) for every image "
        "and n from N(0, latent_noise_std^2)",
    )


class HandedOn(nn.ModuleDict):
    """The autoencoder and what else is averaged with it, by name."""

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """What ``train.compile`` compiles, of each."""
        return [part for module in self.values() for part in getattr(module, "compiled_parts", [module])]


class AutoencoderObjective(Objective):
    """``pixel + perceptual + adversarial + sum of regularisers``, each with its weight.

    Args:
        autoencoder: the model that is trained.
        regularisers: see :mod:`tokenizer.regularisers`.
        config: of the image terms.
        adversary: the discriminator, where there is one; it is trained by its own :meth:`~Adversary.update`.
        features: the frozen model that some regularisers align with.
        world: this process among those of the run.
        log_steps: every so many steps the gradient that each term sends to the latents is measured; 0: never.
        perceptual: LPIPS, where ``config`` gives it a weight.
        micro_batches: of a step, for these gradients.
    """

    backward_again = True  # adaptive weights and the log ask for gradients of single terms, before those of the loss

    def __init__(
        self,
        autoencoder: Autoencoder,
        regularisers: list[Regulariser],
        config: LossConfig,
        adversary: Adversary | None = None,
        features: FeatureModel | None = None,
        world: World | None = None,
        log_steps: int = 0,
        perceptual: PerceptualLoss | None = None,
        micro_batches: int = 1,
    ) -> None:
        super().__init__()
        self.autoencoder, self.config, self.adversary, self.features = autoencoder, config, adversary, features
        self.world, self.log_steps, self.micro_batches = world or World(), log_steps, micro_batches
        self.regularisers, self.perceptual = nn.ModuleList(regularisers), perceptual

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        """The loss, every term raw under its name and weighted under ``weighted/``, and at the logging interval the norm of the gradient
        that the weighted term sends to the encoder's output under ``latent_gradient/``. Samples are ``latents``, and ``images`` and
        ``reconstruction`` in steps that train the discriminator."""
        images = to_model(batch["image"])  # (B, 3, H, H)
        model = self.autoencoder.config
        noise = random.normal("posterior", len(images), model.tokens, model.channels) if model.draws else None
        reconstruction, encoded = self.autoencoder(images, noise, self._latent_noise(len(images), random))
        reconstruction = reconstruction.float()

        terms, weighted = self._image_terms(reconstruction, images, random.step)
        rebuilt = sum(weighted.values())
        samples = {"latents": encoded.latents.detach().float()}
        if self.adversary is not None and random.step >= self.adversary.config.start_step:
            self._weigh_adversary(terms, weighted, reconstruction, rebuilt, random)
            samples |= {"images": images, "reconstruction": reconstruction.detach()}
        if self.features is not None:
            patches, whole = self.features(images)
            batch = batch | {"feature_patches": patches, "feature_global": whole}
        for regulariser in self.regularisers:
            for name, (term, weight) in regulariser.terms(encoded, batch, random).items():
                pull: float | Tensor = weight
                if regulariser.adaptive:
                    pull = weight * adaptive_weight(
                        rebuilt, term, self.autoencoder.encoder.to_latent.weight, self.world
                    )
                terms[name], weighted[name] = term, pull * term
        metrics = {f"weighted/{name}": value.detach() for name, value in weighted.items()}
        if self.log_steps and (random.step + 1) % self.log_steps == 0 and torch.is_grad_enabled():
            for name, value in weighted.items():
                metrics[f"latent_gradient/{name}"] = sample_gradient_norm(
                    value, encoded.code, self.world, self.micro_batches
                )
        return StepOutput(sum(weighted.values()), terms | metrics, samples)

    @property
    def averaged(self) -> nn.Module:
        """What is averaged and handed on: the autoencoder, and beside it the networks that regularisers made for later stages."""
        products = {r.name: r.product for r in self.regularisers if r.product is not None}
        return HandedOn({"autoencoder": self.autoencoder, **products}) if products else self.autoencoder

    def train_auxiliary(
        self, output: StepOutput, step: int, autocast: AbstractContextManager[None]
    ) -> dict[str, Tensor]:
        """One step of the discriminator, from its start on, and of the networks that regularisers own."""
        samples, metrics = output.samples, {}
        if "reconstruction" in samples:
            losses = self.adversary.update(samples["images"], samples["reconstruction"], step, autocast)
            metrics |= {f"discriminator/{name}": value for name, value in losses.items()}
        for regulariser in self.regularisers:
            metrics |= regulariser.train_auxiliary(samples["latents"], step)
        return metrics

    def auxiliary_state(self) -> dict[str, Stateful]:
        owners = [*self.regularisers, *([self.adversary] if self.adversary else [])]
        return {name: item for owner in owners for name, item in owner.saved().items()}

    def _latent_noise(self, images: int, random: StepRandom) -> LatentNoise | None:
        """Of another level for every image: added, as Zheng et al. (arXiv 2510.11690) train the decoder of a frozen encoder, or interpolated
        with the latents, as Yang et al. (arXiv 2507.15856) train a tokenizer.

        The encoder here learns through it: without a regulariser that holds the latents' scale, it lets them grow until the noise is small.
        """
        std, model = self.config.latent_noise_std, self.autoencoder.config
        if not std:
            return None
        noise = random.normal("latent noise", images, model.tokens, model.channels)  # (B, T, C)
        if self.config.latent_noise_kind == "interpolated":
            share = random.uniform("latent noise share", images, 1, 1)
            return LatentNoise(share * std * noise, 1 - share)
        return LatentNoise(std * random.normal("latent noise level", images, 1, 1).abs() * noise)

    def _image_terms(
        self, reconstruction: Tensor, images: Tensor, step: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Raw and weighted terms between images."""
        config = self.config
        terms = {config.pixel: PIXEL_LOSSES[config.pixel](reconstruction, images)}
        weighted = {config.pixel: config.pixel_weight * terms[config.pixel]}
        ramped = config.perceptual_start_step, config.perceptual_ramp_steps
        if self.perceptual is not None and (share := ramp(step, *ramped)):
            terms["lpips"] = self.perceptual(reconstruction, images)
            weighted["lpips"] = share * config.perceptual_weight * terms["lpips"]
        return terms, weighted

    def _weigh_adversary(
        self,
        terms: dict[str, Tensor],
        weighted: dict[str, Tensor],
        reconstruction: Tensor,
        rebuilt: Tensor,
        random: StepRandom,
    ) -> None:
        """Add the adversarial term to ``terms`` and ``weighted``."""
        term = terms["adversarial"] = self.adversary.term(reconstruction, random)
        weight: float | Tensor = self.adversary.weight_at(random.step)
        if self.adversary.config.adaptive:
            weight = weight * adaptive_weight(rebuilt, term, self.autoencoder.decoder.to_pixels.weight, self.world)
        weighted["adversarial"] = weight * term
