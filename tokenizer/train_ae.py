"""Stage 2: train an autoencoder whose latents the frozen flow prior shapes.

    python -m tokenizer.train_ae [--preset digits] [option=value ...]

Writes ``<run_dir>/ae``: ``autoencoder/`` (the averaged weights), pictures of reconstructions, and the log.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from flowprior.data.images import ImageConfig, ImageSource, open_images, to_model, to_uint8
from flowprior.data.loader import training_batches
from flowprior.data.order import SampleKey
from flowprior.errors import UserError, entry_point
from flowprior.flow.prior import FlowPrior
from flowprior.metrics import KNNDensity, ReconstructionMeter
from flowprior.metrics.registry import EXTRACTORS, check_extractor
from flowprior.training.config import config_from_command_line, option
from flowprior.training.distributed import Workers, distributed_workers
from flowprior.training.loop import TrainConfig, TrainingLoop
from flowprior.training.optim import OptimConfig
from flowprior.training.pictures import save_pairs
from flowprior.training.randomness import seed_global_generators
from flowprior.training.run_folder import RunFolder, Stopwatch, peak_memory_gb
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.objective import AutoencoderObjective, LossConfig
from tokenizer.regularisers import RegulariserConfig, RegulariserContext, build_regularisers, chosen_configs

MAKE_PRIOR = "bash scripts/train_flowhead.sh"


@dataclass
class MonitorConfig:
    """What is measured while training."""

    images: int = option(1024, "how many images, spread over the data")
    latents: int = option(10_000, "most latent tokens for the kNN distance (Fig. 4 of the paper)")
    neighbour: int = option(5, "k of the kNN distance")
    picture_images: int = option(16, "in the picture of reconstructions")

    def __post_init__(self) -> None:
        if min(self.images, self.latents, self.neighbour, self.picture_images) < 1:
            raise ValueError("images, latents, neighbour and picture_images are at least 1")


@dataclass
class EvaluateConfig:
    """How the trained autoencoder is measured."""

    extractor: str = option("", f"of features, for rFID: {' or '.join(EXTRACTORS)}; empty: no rFID")
    weights: str = option("", "the extractor's weight file, where it is not in torch's hub folder")

    def __post_init__(self) -> None:
        if self.extractor:
            check_extractor(self.extractor)


@dataclass
class AEConfig:
    """Stage 2."""

    run_dir: str = option("runs/digits", "folder of the run; the stage writes into its ae/", changes_result=False)
    prior: str = option("", "folder of the flow prior; empty: <run_dir>/flowhead/prior", changes_result=False)
    data: ImageConfig = option(ImageConfig, "")
    model: AutoencoderConfig = option(AutoencoderConfig, "")
    loss: LossConfig = option(LossConfig, "")
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


PRESETS = Path(__file__).parent / "configs" / "ae"


@entry_point
def main() -> None:
    config = config_from_command_line(AEConfig, PRESETS, __doc__)
    folder = RunFolder(config.run_dir, "ae")
    with distributed_workers() as workers:
        prior = find_prior(config)
        images = open_images(config.data, config.train.seed)
        folder.open(config, workers, {"data": images.fingerprint()} | ({"prior": prior.fingerprint} if prior else {}))
        if folder.is_complete():
            folder.say_complete()
        else:
            train(config, folder, workers, images, prior)


def train(config: AEConfig, folder: RunFolder, workers: Workers, images: ImageSource, prior: FlowPrior | None) -> None:
    """Train, save the averaged weights, and mark the stage complete."""
    stopwatch = Stopwatch(folder.path)
    context = RegulariserContext(prior, config.model, images.num_classes, config.train.seed, workers)
    regularisers = build_regularisers(config.regulariser, context)
    gaussian = config.model.gaussian or any(r.needs_gaussian for r in regularisers)
    seed_global_generators(config.train.seed, "autoencoder")
    autoencoder = Autoencoder(replace(config.model, gaussian=gaussian))
    objective = AutoencoderObjective(autoencoder, regularisers, config.loss).to(workers.device)
    saved = {name: item for regulariser in regularisers for name, item in regulariser.saved().items()}
    loop = TrainingLoop(objective, autoencoder, config.train, config.optim, workers, folder.path, saved, "autoencoder")
    monitor = Monitor(config, folder, images, prior, workers)

    def after_step(terms: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        latents, figures = terms.pop("latents"), {}
        for regulariser in regularisers:
            figures |= regulariser.after_step(latents, step)
        return figures

    def evaluate(step: int) -> dict[str, float]:
        return monitor(autoencoder, step) if workers.is_main else {}

    with stopwatch.kept(workers):
        figures = loop.run(training_batches(images, config.train, workers, loop.step), evaluate, after_step)
    if workers.is_main:
        with loop.averaged_weights():
            figures = figures or monitor(autoencoder.eval(), loop.step)
            autoencoder.about = {
                "data": {
                    "size": config.data.size,
                    "crop": config.data.crop,
                    "source": config.data.source,
                    "num_classes": images.num_classes,
                },
                "regularisers": [r.describe() for r in regularisers],
                "prior": prior.fingerprint if prior else None,
                "latent_std": figures["latent_std"],
            }
            autoencoder.save(folder.path / "autoencoder")
            folder.complete(
                {
                    "fingerprint": autoencoder.fingerprint,
                    **figures,
                    "seconds": stopwatch.seconds(),
                    "peak_memory_gb": peak_memory_gb(),
                }
            )
        print(
            f"autoencoder: {folder.path / 'autoencoder'}  "
            f"(PSNR {figures['psnr']:.2f} dB, {stopwatch.seconds():.0f} s, peak {peak_memory_gb():.1f} GB)"
        )


def find_prior(config: AEConfig) -> FlowPrior | None:
    """The frozen prior; without one a run whose regularisers need none goes on unmeasured against it.

    Raises:
        UserError: a regulariser needs a prior and there is none, or the prior is over other channels.
    """
    needed = any(section.needs_prior for section in chosen_configs(config.regulariser))
    if not (config.prior_folder / "config.json").is_file():
        if needed or config.prior:
            raise UserError(
                f"there is no flow prior at {config.prior_folder}: run `{MAKE_PRIOR}` first, or write regulariser.name=none"
            )
        return None
    prior = FlowPrior.load(config.prior_folder)
    if prior.channels != config.model.channels:
        if not needed:
            return None
        raise UserError(
            f"the prior in {config.prior_folder} is over {prior.channels} channels and model.channels is {config.model.channels}: "
            f"train a prior with channels={config.model.channels}"
        )
    return prior


class Monitor:
    """Figures and pictures of a fixed set of images: PSNR, SSIM, latent statistics, and alignment loss against kNN distance (Fig. 4)."""

    def __init__(
        self, config: AEConfig, folder: RunFolder, images: ImageSource, prior: FlowPrior | None, workers: Workers
    ) -> None:
        self.config, self.folder, self.images, self.device = config.monitor, folder, images, workers.device
        spread = (
            torch.linspace(0, len(images) - 1, min(config.monitor.images, len(images))).long().tolist()
        )  # folders are sorted by class
        keys = [SampleKey(index, -1) for index in spread]
        self.keys = [keys[first : first + 128] for first in range(0, len(keys), 128)]
        self.prior = prior.to(workers.device) if prior else None
        target = config.prior_folder.parent / "target_samples.safetensors"
        self.density = (
            KNNDensity(load_file(target)["samples"], k=config.monitor.neighbour) if prior and target.is_file() else None
        )

    @torch.no_grad()
    def __call__(self, autoencoder: Autoencoder, step: int) -> dict[str, float]:
        meter, codes, first = ReconstructionMeter(), [], None
        for keys in self.keys:
            batch = self.images.batch(keys)
            latents = autoencoder.encode(to_model(batch["image"].to(self.device)))
            reconstruction = to_uint8(autoencoder.decode(latents)).cpu()
            meter.update(batch["image"], reconstruction)
            codes.append(latents.float())
            if first is None:
                first = (batch["image"][: self.config.picture_images], reconstruction[: self.config.picture_images])
        save_pairs(self.folder.path / "pictures" / f"reconstructions_{step:08d}.png", *first)
        latents = torch.cat(codes)  # (N, T, C)
        spectrum = torch.linalg.eigvalsh(latents.flatten(0, 1).double().T.cov()).clamp(min=1e-12)
        shares = spectrum / spectrum.sum()
        figures = {name: float(value) for name, value in meter.compute().items() if name != "count"}
        figures |= {
            "latent_mean": latents.mean().item(),
            "latent_std": latents.std().item(),
            "latent_norm": latents.norm(dim=-1).mean().item(),
            "latent_effective_rank": torch.exp(-(shares * shares.log()).sum()).item(),
        }
        if self.prior is not None:
            generator = torch.Generator(self.device).manual_seed(0)
            figures["alignment"] = self.prior.alignment_loss(latents, group_size=8, generator=generator).item()
        if self.density is not None:
            tokens = latents.flatten(0, 1)
            rows = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[: self.config.latents]
            figures["knn_log_distance"] = self.density.log_distance(tokens.cpu()[rows])
        return figures


if __name__ == "__main__":
    main()
