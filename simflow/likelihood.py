"""The exact likelihood of images' latents under the trained flow.

    python -m <generator> likelihood [--preset digits_simflow] [data.subset=val] [option=value ...]

The latents are as in training: with the posterior's noise where the flow was trained with the autoencoder, else normalised and with the noise
that training added. Density is over latents in their own units. Prints bits per dimension and writes <run_dir>/simflow/likelihood.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flowprior.data.images import ImageSource, open_images, to_model
from flowprior.data.loader import indexed_batches
from flowprior.distributed import World, best_device
from flowprior.rounding import rounded
from flowprior.run.files import write_json
from flowprior.run.lock import sole_writer
from flowprior.training.randomness import stream_seed
from generation.autoencoder import load_autoencoder
from generation.config import GenerationConfig
from generation.generator import GeneratorObjective
from generation.saved import load_generator
from tokenizer.autoencoder import Autoencoder

BATCH = 128


def main(stage: type[GenerationConfig]) -> None:
    """measure the likelihood of images' latents"""
    config, device = stage.read(__doc__), best_device()
    autoencoder = load_autoencoder(config, device)
    bundle, saved = load_generator(config, autoencoder, device)
    std = saved["about"].get("posterior_std", 0.0)
    images = open_images(config.data)
    measured: dict[str, list[Tensor]] = {"bits_per_dimension": [], "bits_per_dimension_without_class": []}
    for latents, labels in latents_of(images, autoencoder, std, config.train.loader_workers):
        dropped = torch.full_like(labels, bundle.model.num_classes)
        for name, given in zip(measured, (labels, dropped)):
            measured[name].append(bits_per_dimension(bundle, latents, given, seed=len(measured[name])))
    result = {name: torch.cat(parts).mean().item() for name, parts in measured.items()}
    protocol = {
        "generator": saved["fingerprint"],
        "images": images.fingerprint(),
        "count": len(images),
        "posterior_std": std,
        "noise_std": bundle.model.config.noise_std,
    }
    with sole_writer(config.folder, World()):
        write_json(config.folder / "likelihood.json", {"metrics": result, "protocol": protocol})
    print("likelihood: " + "  ".join(f"{name} {rounded(value)}" for name, value in result.items()))


def latents_of(
    images: ImageSource, autoencoder: Autoencoder, std: float, loaders: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of latents ``(B, T, C)`` with Gaussian noise of ``std``, alike in every call, and their labels ``(B,)``."""
    generator = torch.Generator().manual_seed(stream_seed("likelihood"))
    device = next(autoencoder.parameters()).device
    ranges = [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
    for batch in indexed_batches(images, ranges, loaders):
        with torch.no_grad():
            latents = autoencoder.encode(to_model(batch["image"].to(device)))
        noise = torch.randn(latents.shape, generator=generator)
        yield latents + std * noise.to(device), batch["label"].to(device)


@torch.no_grad()
def bits_per_dimension(bundle: GeneratorObjective, latents: Tensor, labels: Tensor, seed: int = 0) -> Tensor:
    """Of raw latents ``(B, T, C)``, in their own units: ``(B,)``. The flow's ``noise_std`` is drawn from ``seed``."""
    flow, normaliser = bundle.model.flow, bundle.normaliser
    x = normaliser(latents)
    if bundle.model.config.noise_std:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(stream_seed("noise of the flow", seed)))
        x = x + bundle.model.config.noise_std * noise.to(x)
    # A density over latents that are larger by 1 / scale is lower by it.
    return flow.bits_per_dimension(x, labels) - normaliser.scale.log().mean() / math.log(2)
