"""Stage 2's config: data, autoencoder, losses and regularisers, and how the result is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flowprior.data.embedded import EMBEDDED
from flowprior.data.image_contents import FILES_READ
from flowprior.data.images import ImageConfig, ImageSource, open_images
from flowprior.errors import UserError
from flowprior.metrics.extractor_options import ExtractorOptions
from flowprior.metrics.registry import EXTRACTORS, foreign_images
from flowprior.run.config import option
from flowprior.run.presets import find_preset
from flowprior.training.config import TrainConfig
from flowprior.training.optim import OptimConfig
from tokenizer.autoencoder import AutoencoderConfig
from tokenizer.features import FeatureConfig
from tokenizer.metrics import METERS, MeterContext, check_meters
from tokenizer.monitor import MonitorConfig
from tokenizer.objective import LossConfig
from tokenizer.regularisers import ELSEWHERE, RegulariserConfig

PRESETS = Path(__file__).parent / "configs"


def find_ae_preset(name: str, folder: Path) -> Path:
    """As :func:`~flowprior.run.presets.find_preset`; a :class:`UserError` names the script for an autoencoder that is trained elsewhere."""
    script = ELSEWHERE.get(name.rpartition("_")[2])
    if script and not (folder / f"{name}.yaml").is_file():
        raise UserError(f"the preset '{name}' is not of this command: run `PRESET={name} {script}`")
    return find_preset(name, folder)


@dataclass
class EvaluateConfig(ExtractorOptions):
    """How the trained autoencoder is measured."""

    SECTION = "evaluate"

    extractor: str = option("", f"extractor of features, for rFID: {' or '.join(EXTRACTORS)}; empty: no rFID")
    metrics: tuple[str, ...] = option(
        (),
        f"what is measured, of {', '.join(METERS)}; empty: fidelity, rfid where an extractor is named, lpips where it is part of the loss",
    )
    reference: str = option(
        "", "for rFID a .npz of as many real images, cropped alike; empty: the originals themselves"
    )
    latent_noise_shares: tuple[float, ...] = option(
        (), "measure also what is decoded from latents with noise, whose std is such a share of each channel's"
    )

    def __post_init__(self) -> None:
        shares = [f"{share:g}" for share in self.latent_noise_shares]
        if not all(0 < share < math.inf for share in self.latent_noise_shares) or len(set(shares)) < len(shares):
            raise ValueError(f"latent_noise_shares are different numbers above 0, not {', '.join(shares)}")
        super().__post_init__()
        check_meters(self.metrics)


@dataclass
class AEConfig:
    """Stage 2."""

    run_dir: str = option("runs/digits", "folder of the run; the stage writes into its ae/", changes_result=False)
    dry_run: bool = option(
        False, "print parameters, FLOP and memory of a step, and train nothing", changes_result=False
    )
    prior: str = option(
        "",
        "folder of the flow prior, or its name on the Hugging Face hub; empty: <run_dir>/flowhead/prior",
        changes_result=False,
    )
    data: ImageConfig = option(ImageConfig, "")
    held_out: str = option(
        "",
        "where images lie that are measured and not trained on, as for data.path; empty: of data.subset=train the other part of the digits, "
        "else the training images",
        changes_result=False,
    )
    model: AutoencoderConfig = option(AutoencoderConfig, "")
    loss: LossConfig = option(LossConfig, "")
    features: FeatureConfig = option(FeatureConfig, "")
    regulariser: RegulariserConfig = option(RegulariserConfig, "")
    monitor: MonitorConfig = option(MonitorConfig, "")
    evaluate: EvaluateConfig = option(EvaluateConfig, "", changes_result=False)
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")

    def __post_init__(self) -> None:
        if self.data.size != self.model.image_size:
            raise ValueError(
                f"data.size {self.data.size} and model.image_size {self.model.image_size} are the same number: write both"
            )

    @property
    def prior_folder(self) -> Path:
        return Path(self.prior) if self.prior else Path(self.run_dir) / "flowhead" / "prior"

    def held_out_data(self) -> ImageConfig:
        """The images that are measured, cropped as they are for evaluation."""
        if self.held_out:
            return self.data.at(self.held_out)
        if self.data.has_subsets and self.data.subset == "train":
            return replace(self.data, subset="val")
        return self.data

    def says_of_extractor(self) -> str:
        """What to say where the extractor was made for other images than those that are measured; else empty."""
        name = self.evaluate.extractor_name
        return foreign_images(name, self.held_out_data().source) if name and not self.evaluate.own_weights else ""

    def says_of_features(self) -> str:
        """What to say where embedded features are of a classifier of other images than those that are trained on; else empty."""
        of, images = self.features.digits.of, self.data.source
        if not self.takes_features or self.features.source != "digits" or images == of:
            return ""
        remedy = f": write features.digits.of={images}" if images in EMBEDDED else ""
        return f"features.source=digits takes features of a classifier of {of}, and the images are others (data.source={images}){remedy}"

    def says_of_held_out(self, held_out: ImageSource, images: ImageSource | None = None) -> str:
        """What to say where images of ``held_out`` are trained on as well; else empty."""
        if self.holds_out and self.takes_features and self.features.source == "digits":
            trained_on = self.features.digits.of
            if trained_on == self.held_out_data().source:
                return f"the classifier of features.source=digits is trained on all images of {trained_on}, those held out among them"
        if not (self.held_out and self.holds_out and self.data.source == "files"):
            return ""
        copies = held_out.copies_of(images or open_images(self.data))  # type: ignore[attr-defined]
        looked_at = min(len(held_out), FILES_READ)
        return f"{copies} of the {looked_at} held-out images looked at are training images as well" if copies else ""

    def weight_files(self) -> dict[str, Path]:
        """The files of weights that its networks start from or are frozen with, as far as options name them and they are there."""
        adversarial, perceptual = self.loss.adversarial, self.loss.perceptual_weights
        frozen = adversarial.discriminator.dino if adversarial.discriminator.name == "dino" else None
        named = {
            "file of the encoder's first weights": self.model.encoder.weights,
            "file of the features' weights": self.features.timm.weights if self.takes_timm_features else "",
            "file of the discriminator's weights": frozen.weights if frozen and adversarial.weight else "",
            "file of LPIPS's weights": perceptual if self.loss.perceptual_weight else "",
        }
        return {what: Path(file) for what, file in named.items() if file and Path(file).is_file()}

    @property
    def takes_timm_features(self) -> bool:
        return self.takes_features and self.features.source == "timm"

    @property
    def takes_features(self) -> bool:
        """Whether a regulariser aligns latents with features of images."""
        return any(getattr(section, "needs_features", False) for section in self.regulariser.chosen)

    @property
    def holds_out(self) -> bool:
        """Whether the images that are measured are others than those of training."""
        measured = self.held_out_data()
        if self.held_out and self.data.source == "files":  # however the place is written
            return Path(measured.path).resolve() != Path(self.data.path).resolve()
        return measured != self.data

    def check_run(self) -> None:
        """Called before anything is written: a :class:`UserError` where the run holds what a stage based on this one would overwrite."""

    def meter_context(self, image_count: int, device: torch.device) -> MeterContext:
        """What measures of ``image_count`` reconstructions are built from."""
        return MeterContext(
            device,
            image_count,
            self.data.size,
            self.evaluate.extractor_name,
            str(self.evaluate.weights_file() or ""),
            self.evaluate.reference,
            self.loss.perceptual_weights,
        )
