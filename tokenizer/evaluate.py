"""Measure a trained autoencoder on held-out images: PSNR, SSIM, rFID and LPIPS.

    python -m tokenizer.evaluate [--preset digits] [option=value ...]

The images are ``held_out=<folder>``, ImageNet's 50,000 for validation say, or else the data, cropped centrally at the size of training.
Writes ``<run_dir>/ae/evaluation.json`` with the figures and their protocol.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from flowprior.data.images import ImageSource, open_images, to_model, to_uint8
from flowprior.data.loader import indexed_batches
from flowprior.errors import UserError, entry_point
from flowprior.training.config import config_from_command_line
from flowprior.training.distributed import Workers, best_device
from flowprior.training.files import read_json, write_json
from flowprior.training.lock import sole_writer
from flowprior.training.randomness import stream_seed
from tokenizer.autoencoder import Autoencoder
from tokenizer.metrics import Meter, build_meters
from tokenizer.train_ae import PRESETS, AEConfig

BATCH = 128


@entry_point
def main() -> None:
    config = config_from_command_line(AEConfig, PRESETS, __doc__)
    if config.dry_run:
        return
    folder = Path(config.run_dir) / "ae"
    if not (folder / "autoencoder" / "config.json").is_file():
        raise UserError(f"there is no autoencoder at {folder / 'autoencoder'}: run `bash scripts/train_ae.sh` first")
    autoencoder = Autoencoder.load(folder / "autoencoder")
    check_crop(config, autoencoder)
    with sole_writer(folder, Workers(), may_be_read_only=(folder / "evaluation.json").is_file()):
        evaluate(config, folder, autoencoder)


def evaluate(config: AEConfig, folder: Path, autoencoder: Autoencoder) -> None:
    """Write and say the figures, unless just these are there."""
    images = open_images(config.held_out_data())
    if config.data.source == "folder" and not config.held_out:
        print(f"note: measured on the {len(images)} training images: held_out=<folder> names others", file=sys.stderr)
    noise = config.evaluate.latent_noise
    # one set of meters for the latents as they are, and one for every level of noise
    sets = [
        build_meters(chosen_metrics(config), config.meter_context(len(images), best_device()))
        for _ in range(1 + len(noise))
    ]
    meters = sets[0]
    protocol = {
        "autoencoder": autoencoder.fingerprint,
        "images": images.fingerprint(),
        "held_out": config.held_out_data() != config.data,
        "count": len(images),
        "size": config.data.size,
        "crop": "centre",
        "weights": "averaged",
        "dtype": "float32, float64 moments",
        "extractor": None,
    }
    for meter in meters:
        protocol |= meter.protocol()
    if noise:
        protocol["latent_noise"] = list(noise)
    file = folder / "evaluation.json"
    if file.is_file() and read_json(file, "evaluation").get("protocol") == protocol:
        print(f"evaluation of the autoencoder: complete ({file})")
    else:
        metrics = measure(autoencoder, images, meters, config.train.workers)
        std = channel_std(autoencoder, images, config.train.workers) if noise else None
        for share, own in zip(noise, sets[1:]):
            found = measure(autoencoder, images, own, config.train.workers, noise_std=share * std)
            metrics |= {f"{name}_noise_{share:g}": value for name, value in found.items()}
        write_json(file, {"metrics": metrics, "protocol": protocol})
    metrics = read_json(file, "evaluation")["metrics"]
    print("autoencoder: " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


def chosen_metrics(config: AEConfig) -> list[str]:
    """Those that the config names, or every one that can be expected to have its weights."""
    if config.evaluate.metrics:
        return list(config.evaluate.metrics)
    return ["fidelity", *["rfid"] * bool(config.evaluate.extractor), *["lpips"] * bool(config.loss.perceptual_weight)]


def check_crop(config: AEConfig, autoencoder: Autoencoder) -> None:
    """A :class:`UserError` when the images would be shown at another size or crop than in training."""
    kept = autoencoder.about.get("data", {})
    for name, asked in (("size", config.data.size), ("crop", config.data.crop)):
        if name in kept and kept[name] != asked:
            raise UserError(
                f"the autoencoder was trained at data.{name}={kept[name]}, not {asked}: measure it with the options that it was trained with"
            )


@torch.no_grad()
def measure(
    autoencoder: Autoencoder,
    images: ImageSource,
    meters: list[Meter],
    loaders: int = 0,
    noise_std: Tensor | None = None,
) -> dict[str, float]:
    """The meters' figures over all images, which are read by so many ``loaders`` beside this process and not kept.

    With ``noise_std (C,)`` the latents get Gaussian noise of these standard deviations, the same in every call, before they are decoded.
    """
    autoencoder = autoencoder.to(best_device())
    generator = torch.Generator().manual_seed(stream_seed("noise on the latents"))
    for batch, latents in _encoded(autoencoder, images, loaders, "reconstruct"):
        if noise_std is not None:
            noise = noise_std.cpu() * torch.randn(latents.shape, generator=generator)
            latents = latents + noise.to(latents)
        reconstruction = to_uint8(autoencoder.decode(latents)).cpu()
        for meter in meters:
            meter.update(batch["image"], reconstruction)
    return {name: value for meter in meters for name, value in meter.compute().items()}


@torch.no_grad()
def channel_std(autoencoder: Autoencoder, images: ImageSource, loaders: int = 0) -> Tensor:
    """Standard deviation of every channel of the latents, ``(C,)``, over all images and tokens."""
    autoencoder, count = autoencoder.to(best_device()), 0
    total = square = torch.zeros(autoencoder.config.channels, dtype=torch.float64)
    for _, latents in _encoded(autoencoder, images, loaders, "measure latents"):
        tokens = latents.flatten(0, 1).double().cpu()  # (B T, C)
        count, total, square = count + len(tokens), total + tokens.sum(0), square + tokens.square().sum(0)
    return (square / count - (total / count).square()).clamp_min(0).sqrt().float()


def _encoded(
    autoencoder: Autoencoder, images: ImageSource, loaders: int, description: str
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Batches of all images, as they are read, and their latents."""
    ranges = [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
    batches = indexed_batches(images, ranges, loaders)
    for batch in tqdm(batches, total=len(ranges), desc=description, unit="batch", dynamic_ncols=True):
        yield batch, autoencoder.encode(to_model(batch["image"].to(best_device())))


if __name__ == "__main__":
    main()
