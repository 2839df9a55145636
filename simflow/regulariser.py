"""SimFlow's regulariser (Zhao et al., arXiv 2512.04084): the likelihood of the latents under a flow that is learned along with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from flowprior.data.images import ImageSource
from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World
from flowprior.run.config import option
from flowprior.run.lock import sole_writer
from flowprior.training.checkpoint import Stateful
from flowprior.training.randomness import StepRandom
from generation.generator import GeneratorObjective
from generation.reference import class_counts
from generation.saved import save_generator
from simflow.config import GeneratorConfig, SimFlowStageConfig
from simflow.model import SamplerConfig, TarFlowConfig
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, Encoded
from tokenizer.regularisers.base import Regulariser, RegulariserContext


@dataclass
class JointFlowConfig:
    """The simflow regulariser: a posterior, and a flow as its prior."""

    needs_prior: ClassVar[bool] = False
    weight: float = option(
        1e-3,
        "weight of the negative log-likelihood of the drawn latents, less their posterior's entropy where variance=learned, in nats per "
        "dimension; w of the sum over an image's T x C is w T C here",
    )
    variance: Literal["fixed", "learned"] = option(
        "fixed",
        "of the posterior; fixed: std everywhere, as published; learned: predicted by the encoder for each latent element, as in a VAE, with its "
        "entropy in the loss",
    )
    std: float = option(0.5, "standard deviation of a posterior of fixed variance; the published one")
    flow: TarFlowConfig = option(TarFlowConfig, "")

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(f"weight is a finite number above 0, not {self.weight}: the flow learns by it as well")
        if not 0 < self.std < math.inf:
            raise ValueError(
                f"std is a finite number above 0, not {self.std}: without noise the flow's likelihood grows without bound as latents shrink"
            )
        if self.variance == "learned" and self.std != type(self).std:
            raise ValueError(
                f"std={self.std} is of a posterior of fixed variance: leave it out, or write variance=fixed"
            )
        if self.flow.noise_std:
            raise ValueError(f"flow.noise_std is 0, not {self.flow.noise_std}: the noise is the posterior's, write std")
        if self.flow.sampler != SamplerConfig():
            raise ValueError(
                "flow.sampler is of drawing images and not of training: write model.tarflow.sampler.<option>= behind a --"
            )

    def build(self, context: RegulariserContext) -> JointFlow:
        return JointFlow(self, context)


def gaussian_entropy(logvar: Tensor) -> Tensor:
    """Of ``N(mean, exp(logvar))`` in nats, averaged over all elements of ``logvar``."""
    return 0.5 * (1 + math.log(2 * math.pi) + logvar).mean()


class JointFlow(Regulariser):
    """``-log p(z) / (T C)`` of latents ``z = mean + std noise`` under a class-conditional flow p, in nats.

    With the reconstruction it is the evidence lower bound of the paper: the entropy of the posterior, whose variance is fixed, is a
    constant. Nothing is stopped: the gradient moves the flow towards the latents and the latents towards the flow. Latents gain nothing by
    shrinking to a point, since the noise keeps its size. The flow sees latents in their own units.

    Of a posterior whose variance is learned the entropy is no constant: it is subtracted, and what is left is the divergence of the
    posterior from the flow, ``KL(q(z | x) || p) / (T C)``, estimated by one draw. Without it the variance would fall to nothing.
    """

    name = "simflow"

    def __init__(self, config: JointFlowConfig, context: RegulariserContext) -> None:
        super().__init__(config.weight)
        self.config, sizes = config, context.model
        self.shape = {"tokens": sizes.tokens, "channels": sizes.channels, "num_classes": context.num_classes}
        self.generator = config.flow.build(**self.shape)
        parameters = sum(p.numel() for p in self.generator.parameters())
        self.needs_gaussian = config.variance == "learned"
        posterior = "learned variance" if self.needs_gaussian else f"std {config.std:g}"
        self.note = (
            f"simflow: posterior of {posterior}, and a flow of {parameters:,} parameters that learns its latents"
        )

    def adapt(self, model: AutoencoderConfig) -> AutoencoderConfig:
        return super().adapt(model) if self.needs_gaussian else replace(model, posterior_std=self.config.std)

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        nats = self.generator.loss(encoded.latents.float(), batch["label"], random)
        return nats if encoded.logvar is None else nats - gaussian_entropy(encoded.logvar.float())

    @property
    def std(self) -> float | str:
        """Of the posterior; ``learned`` where it has one for each latent element."""
        return "learned" if self.needs_gaussian else self.config.std

    @property
    def product(self) -> nn.Module:
        return self.generator

    def saved(self) -> dict[str, Stateful]:
        return {}

    def hand_on(self, run_dir: Path, autoencoder: Autoencoder, images: ImageSource) -> None:
        """Save the flow as the generator of the run, under the identity as the latents' scale."""
        normaliser = LatentNormaliser(self.shape["channels"]).to(next(self.parameters()).device)
        about = {
            "autoencoder": autoencoder.fingerprint,
            "images": images.fingerprint(),
            "class_names": images.class_names,
            "class_counts": list(class_counts(images)),
            "trained": "with the autoencoder",
            "posterior_std": self.std,
        }
        folder = run_dir / SimFlowStageConfig.NAME
        section = GeneratorConfig(name="tarflow", tarflow=self.config.flow)
        with sole_writer(folder, World()):
            save_generator(
                folder / "generator", GeneratorObjective(self.generator, normaliser), section, self.shape, about
            )
        print(f"flow: {folder / 'generator'}  (trained with the autoencoder)")

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"std": self.std}
