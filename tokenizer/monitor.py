"""What is measured while an autoencoder trains: reconstructions, latents, and alignment against density."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowprior.data.images import ImageSource, to_model, to_uint8
from flowprior.data.order import SampleKey
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.flow.prior import FlowPrior
from flowprior.metrics.knn import NEIGHBOUR, KNNDensity
from flowprior.metrics.sliced_wasserstein import sliced_wasserstein
from flowprior.run.config import Section, option
from flowprior.run.files import read_tensors
from flowprior.run.pictures import save_pairs
from flowprior.run.reporting import read_log
from flowprior.run.run_folder import RunFolder
from tokenizer.autoencoder import Autoencoder
from tokenizer.metrics import METERS, Meter, MeterContext, build_meters, check_meters


@dataclass
class MonitorConfig(Section):
    """What is measured while training."""

    images: int = option(
        1024,
        "how many of the held-out images, or of the training images where none are held out, spread over the data",
        least=1,
    )
    metrics: tuple[str, ...] = option(
        ("fidelity",),
        f"what is measured, of {', '.join(METERS)}; one whose weights cannot be had is left out, with a line that says so",
        changes_result=False,
    )
    latents: int = option(
        10_000, "how many latent tokens, at most, the kNN distance takes (Fig. 4 of the paper)", least=1
    )
    neighbour: int = option(NEIGHBOUR, "k of the kNN distance", least=1)
    picture_images: int = option(16, "images in the picture of reconstructions", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_meters(self.metrics)


class Monitor:
    """Figures and pictures of a fixed set of images, from the first process.

    Args:
        config: what is measured.
        folder: of the stage.
        images: held out, or those of training.
        prior: that latents are compared with, if there is one.
        target_samples: file of projected target features, for kNN distances; may be missing.
        meters: where the meters' weights are.
        world: this process among those of the run.
    """

    def __init__(
        self,
        config: MonitorConfig,
        folder: RunFolder,
        images: ImageSource,
        prior: FlowPrior | None,
        target_samples: Path,
        meters: MeterContext,
        world: World,
    ) -> None:
        self.config, self.folder, self.images, self.device = config, folder, images, world.device
        # Over all of them, since folders are sorted by class.
        spread = torch.linspace(0, len(images) - 1, min(config.images, len(images))).long().tolist()
        keys = [SampleKey(index, -1) for index in spread]
        self.keys = [keys[first : first + 128] for first in range(0, len(keys), 128)]
        self.context, self.names = meters, list(config.metrics)
        self.prior = prior.to(world.device) if prior else None
        target = read_samples(target_samples) if prior and target_samples.is_file() else None
        if prior and target is None and world.is_main:
            print(
                f"note: no kNN distances are measured, since there are no target samples at {target_samples}",
                file=sys.stderr,
                flush=True,
            )
        if target is not None:
            check_samples(target, target_samples, config.neighbour, prior.channels)
        self.density = None if target is None else KNNDensity(target, k=config.neighbour)
        self.target = None if target is None else TargetCloud(target)

    @torch.no_grad()
    def __call__(self, autoencoder: Autoencoder, step: int) -> dict[str, float]:
        meters, codes, first = self._meters(), [], None
        for keys in self.keys:
            batch = self.images.batch(keys)
            latents = autoencoder.encode(to_model(batch["image"].to(self.device)))
            reconstruction = to_uint8(autoencoder.decode(latents)).cpu()
            for meter in meters:
                meter.update(batch["image"], reconstruction)
            codes.append(latents.float())
            if first is None:
                first = (batch["image"][: self.config.picture_images], reconstruction[: self.config.picture_images])
        save_pairs(self.folder.path / "pictures" / f"reconstructions_{step:08d}.png", *first)
        latents = torch.cat(codes)  # (N, T, C)
        metrics = {name: value for meter in meters for name, value in meter.compute().items()}
        return metrics | latent_metrics(latents) | self._alignment_metrics(latents, step)

    def _meters(self) -> list[Meter]:
        """Fresh meters; one whose weights cannot be had is left out from now on."""
        built = []
        for name in list(self.names):
            try:
                built += build_meters([name], self.context)
            except UserError as error:
                print(f"note: {name} is not measured while training: {error}", file=sys.stderr, flush=True)
                self.names.remove(name)
        return built

    def _alignment_metrics(self, latents: Tensor, step: int) -> dict[str, float]:
        """Alignment loss, mean log kNN distance, and the correlation of the two over the run so far (Fig. 4)."""
        metrics = {}
        tokens = latents.flatten(0, 1)  # (N T, C)
        rows = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[: self.config.latents]
        tokens = tokens[rows.to(tokens.device)]
        if self.prior is not None:
            generator = torch.Generator(self.device).manual_seed(0)
            metrics["alignment"] = self.prior.alignment_loss(tokens, group_size=8, generator=generator).item()
        if self.density is not None:
            metrics["knn_log_distance"] = self.density.log_distance(tokens.cpu())
            metrics |= self.target.metrics(tokens.cpu())
            names = ("alignment", "knn_log_distance")
            earlier = [
                row for row in read_log(self.folder.path / "log.jsonl") if names[1] in row and row["step"] < step
            ]
            points = np.array([[float(row[name]) for name in names] for row in [*earlier, metrics]])
            if len(points) > 2:
                metrics["alignment_knn_correlation"] = float(np.corrcoef(points.T)[0, 1])
        return metrics


def read_samples(file: Path) -> Tensor:
    """The projected target features ``(n, C)`` that stage 1 left."""
    samples = read_tensors(file, "target samples").get("samples")
    if samples is None or samples.dim() != 2 or not samples.is_floating_point():
        raise UserError(
            f"{file} holds no 'samples' (n, channels): delete its folder and run `bash scripts/train_flowhead.sh`"
        )
    return samples


def check_samples(samples: Tensor, file: Path, neighbour: int, channels: int) -> None:
    """A :class:`UserError` unless latents of so many channels can be compared with their ``neighbour``-th nearest of ``samples``."""
    count, width = samples.shape
    if width != channels:
        raise UserError(
            f"the target samples {file} have {width} channels and the prior has {channels}: they are another prior's, move them away"
        )
    if not torch.isfinite(samples).all():
        raise UserError(f"the target samples {file} are not finite: train the prior again, in another run_dir")
    if count < neighbour:
        raise UserError(
            f"monitor.neighbour is {neighbour} and {file} holds {count} target samples: write monitor.neighbour={count}"
        )


class TargetCloud:
    """The projected target features ``(N, C)`` as what latents are compared with."""

    def __init__(self, samples: Tensor) -> None:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
        self.rows, self.others = samples[order].tensor_split(2)

    def metrics(self, latents: Tensor) -> dict[str, float]:
        """The target's standard deviation and effective rank, and the sliced Wasserstein distance of ``latents (N, C)`` to it beside
        its floor, the distance of other rows of the target, all of them equally many."""
        size = min(len(latents), len(self.rows))
        about = latent_metrics(self.rows.unsqueeze(1))
        return {
            "target_std": about["latent_std"],
            "target_effective_rank": about["latent_effective_rank"],
            "latent_sliced_wasserstein": sliced_wasserstein(latents[:size], self.rows[:size]),
            "latent_sliced_wasserstein_floor": sliced_wasserstein(self.others[:size], self.rows[:size]),
        }


def latent_metrics(latents: Tensor) -> dict[str, float]:
    """Mean, standard deviation, mean norm and effective rank, ``exp`` of the entropy of the covariance's spectrum, of ``(N, T, C)``."""
    channels = latents.shape[-1]
    covariance = latents.flatten(0, 1).double().T.cov().view(channels, channels)  # of one channel it is a number
    spectrum = torch.linalg.eigvalsh(covariance).clamp(min=1e-12)
    shares = spectrum / spectrum.sum()
    return {
        "latent_mean": latents.mean().item(),
        "latent_std": latents.std().item(),
        "latent_norm": latents.norm(dim=-1).mean().item(),
        "latent_effective_rank": torch.exp(-(shares * shares.log()).sum()).item(),
    }
