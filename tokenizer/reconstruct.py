"""A trained autoencoder's reconstructions under the meters: from its latents, and from its latents with noise."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flowprior.data.images import ImageSource, to_model, to_uint8
from flowprior.data.loader import indexed_batches
from flowprior.distributed import best_device
from flowprior.metrics.statistics import StreamingMoments
from flowprior.progress import progress_bar
from flowprior.training.randomness import stream_seed
from tokenizer.autoencoder import Autoencoder
from tokenizer.metrics import Meter

BATCH = 128


@torch.no_grad()
def measure(autoencoder: Autoencoder, images: ImageSource, meters: list[Meter], loaders: int = 0) -> dict[str, float]:
    """The meters' metrics over all images. ``loaders`` further processes read these, and none is kept."""
    for originals, latents in encoded(autoencoder, images, loaders, "reconstruct"):
        reconstruction = to_uint8(autoencoder.decode(latents)).cpu()
        for meter in meters:
            meter.update(originals, reconstruction)
    return _metrics(meters)


@torch.no_grad()
def measure_with_noise(
    autoencoder: Autoencoder,
    images: ImageSource,
    meters: dict[float, list[Meter]],
    loaders: int = 0,
    std: Tensor | None = None,
) -> dict[str, float]:
    """How well the decoder bears what a generator gets wrong: the metrics of images decoded from ``latents + share * std * noise``.

    Args:
        autoencoder, images, loaders: as for :func:`measure`.
        meters: for every share a set of its own. ``noise`` is Gaussian, alike for all shares and in every call.
        std: ``(C,)`` or ``(T, C)``; each channel's (:func:`channel_std`) where none is given.

    Returns:
        ``<figure>_noise_<share>``.
    """
    std = channel_std(autoencoder, images, loaders) if std is None else std.cpu()
    generator = torch.Generator().manual_seed(stream_seed("noise on the latents"))
    for originals, latents in encoded(autoencoder, images, loaders, "reconstruct with noise"):
        noise = (std * torch.randn(latents.shape, generator=generator)).to(latents)  # (B, T, C)
        for share, own in meters.items():
            reconstruction = to_uint8(autoencoder.decode(latents + share * noise)).cpu()
            for meter in own:
                meter.update(originals, reconstruction)
    return {f"{name}_noise_{share:g}": value for share, own in meters.items() for name, value in _metrics(own).items()}


@torch.no_grad()
def channel_std(autoencoder: Autoencoder, images: ImageSource, loaders: int = 0) -> Tensor:
    """Standard deviation of every channel of the latents, ``(C,)`` on the CPU, over all images and tokens."""
    moments = StreamingMoments()
    for _, latents in encoded(autoencoder, images, loaders, "measure latents"):
        moments.update(latents.flatten(0, 1))  # (B T, C)
    return (moments.scatter.diagonal() / moments.count).sqrt().float().cpu()


def encoded(
    autoencoder: Autoencoder, images: ImageSource, loaders: int, description: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of all images, uint8 ``(B, 3, H, H)`` as they are read, and their latents ``(B, T, C)`` on the best device."""
    device = best_device()
    autoencoder.to(device)
    ranges = [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
    batches = indexed_batches(images, ranges, loaders)
    for batch in progress_bar(batches, total=len(ranges), desc=description, unit="batch"):
        yield batch["image"], autoencoder.encode(to_model(batch["image"].to(device)))


def _metrics(meters: list[Meter]) -> dict[str, float]:
    return {name: value for meter in meters for name, value in meter.compute().items()}
