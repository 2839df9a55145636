"""The exact likelihood of images' latents under the trained flow.

    python -m <generator> likelihood [--preset digits_simflow] [data.subset=val] [option=value ...]

The latents are as in training: drawn from the posterior where the flow was trained with the autoencoder, or on cached moments or draws, and
else its mean; normalised, and with the noise that training added. Density is over latents in their own units.
Prints bits per dimension, says where training had the same images, and writes <run_dir>/simflow/likelihood.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flowprior.data.images import ImageConfig, ImageSource, open_images, to_model
from flowprior.data.loader import indexed_batches
from flowprior.distributed import World, best_device
from flowprior.errors import UserError
from flowprior.notes import counted, note
from flowprior.rounding import rounded
from flowprior.run.config import build_config
from flowprior.run.files import write_json
from flowprior.run.lock import sole_writer
from flowprior.run.written import read_yaml
from flowprior.training.randomness import stream_seed
from generation.autoencoder import load_autoencoder
from generation.config import GenerationConfig
from generation.generator import GeneratorObjective
from generation.saved import load_generator
from tokenizer.opening import Tokenizer

BATCH = 128


def main(stage: type[GenerationConfig]) -> None:
    """measure the likelihood of images' latents"""
    config, device = stage.read(__doc__), best_device()
    autoencoder = load_autoencoder(config, device)
    bundle, saved = load_generator(config, autoencoder, device)
    about = saved["about"]
    jointly = about.get("trained") == "with the autoencoder"
    drawn = jointly or about.get("posterior", config.cache.posterior) != "mean"
    images = open_images(config.data)
    if trained := trained_on(config):
        if jointly and "autoencoder" in trained:
            trained = ["autoencoder", "flow"]
        advice = ": train with data.subset=train, and measure with data.subset=val" if config.data.has_subsets else ""
        note(f"{' and '.join(trained)} had these images in training{advice}")
    measured: dict[str, list[Tensor]] = {"bits_per_dimension": []}
    if bundle.model.config.label_drop:
        measured["bits_per_dimension_without_class"] = []
    for latents, labels in latents_of(images, autoencoder, drawn, config.train.loader_workers):
        dropped = torch.full_like(labels, bundle.model.num_classes)
        for name, given in zip(measured, (labels, dropped)):
            measured[name].append(bits_per_dimension(bundle, latents, given, seed=len(measured[name])))
    result = {name: torch.cat(parts).mean().item() for name, parts in measured.items()}
    protocol = {
        "generator": saved["fingerprint"],
        "images": images.fingerprint(),
        "count": len(images),
        "posterior_std": about.get("posterior_std", "learned" if drawn else 0.0),
        "noise_std": bundle.model.config.noise_std,
    }
    with sole_writer(config.folder, World()):
        write_json(config.folder / "likelihood.json", {"metrics": result, "protocol": protocol})
    figures = "  ".join(f"{name} {rounded(value)}" for name, value in result.items())
    print(f"likelihood: {figures}  (of {counted(len(images), 'image', 'images')}, in the latents' own units)")


def trained_on(config: GenerationConfig) -> list[str]:
    """Which of autoencoder and flow were trained on the images of ``config``, or on some of them, by the configs in their run folders: not by those
    of what they were started from."""
    found, now = [], config.data
    for name, folder in {"autoencoder": config.autoencoder_folder.parent, "flow": config.folder}.items():
        file = folder / "config.yaml"
        try:
            then = build_config(ImageConfig, read_yaml(file).get("data", {}), str(file)) if file.is_file() else None
        except UserError:  # it is not a stage's
            then = None
        if then is None or then.place != now.place:
            continue
        alike = then.split_seed == now.split_seed or not then.embedded
        apart = now.has_subsets and alike and {then.subset, now.subset} == {"train", "val"}
        if not apart:
            found.append(name)
    return found


def latents_of(
    images: ImageSource, autoencoder: Tokenizer, drawn: bool, loaders: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of latents ``(B, T, C)`` and their labels ``(B,)``: the posterior's mean, or drawn from it, alike in every call."""
    generator = torch.Generator().manual_seed(stream_seed("likelihood"))
    device, sizes = next(autoencoder.parameters()).device, (autoencoder.config.tokens, autoencoder.config.channels)
    ranges = [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
    for batch in indexed_batches(images, ranges, loaders):
        noise = torch.randn(len(batch["image"]), *sizes, generator=generator).to(device) if drawn else None
        with torch.no_grad():
            latents = autoencoder.posterior(to_model(batch["image"].to(device)), noise).latents
        yield latents, batch["label"].to(device)


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
