"""Encode every image once, so that the generator trains on latents alone.

    python -m <generator> cache_latents [--preset digits] [option=value ...]

Writes ``<run_dir>/latents``, which all generators of a run share. The options are those of ``cache``: both flips or ten crops, moments of
a gaussian autoencoder or draws from it, bfloat16 or float16, processes that read images. Interrupted, it goes on with the shards that
are missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flowprior.data.images import open_images, shared_fingerprint
from flowprior.data.latent_writer import CacheConfig, write_latent_cache
from flowprior.distributed import distributed_world
from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.fingerprints import accept_earlier
from flowprior.run.lock import sole_writer
from flowprior.run.provenance import Provenance
from flowprior.run.run_folder import Stopwatch
from generation.autoencoder import load_autoencoder
from generation.config import GenerationConfig
from tokenizer.opening import Tokenizer


def main(stage: type[GenerationConfig]) -> None:
    config = stage.read(__doc__)
    manifest = config.cache_folder / "manifest.json"
    with distributed_world() as world, sole_writer(config.cache_folder, world, manifest.is_file()):
        autoencoder = load_autoencoder(config, world.device)
        images = open_images(replace(config.data, size=config.cache.image_size(config.data.size)))
        origin = {
            "autoencoder": autoencoder.fingerprint,
            "images": shared_fingerprint(images, world),
            "size": config.data.size,
            **config.cache.describe(),
        }
        if manifest.is_file():
            updated = partial(accept_earlier, now=origin["images"], where=manifest)
            if stale := Provenance(manifest, "latent cache", "origin", updated=updated).differing(origin, world):
                raise UserError(
                    f"the latent cache {config.cache_folder} was made from another input ({', '.join(stale)}): "
                    "delete the folder, or write run_dir=<another>"
                )
            if world.is_main:
                print(f"latents: complete ({config.cache_folder})")
            return
        reference = Path(config.evaluate.reference)
        if world.is_main:  # before hours of training, rather than after them
            # They bring torch-fidelity, which a cache that is complete does not need.
            from flowprior.metrics import missing_weights
            from generation.fdr import named_extractor

            if reference.suffix == ".npz" and not reference.is_file():
                note(f"the evaluation's reference {reference} is not there yet (fid_stats/README.md)")
            further = [named_extractor(text) for text in config.evaluate.fdr.extractors]
            for extractor in (config.evaluate.open_extractor(), *further):
                if missing := missing_weights(extractor):
                    note(f"the evaluation after training will stop: {missing}")
        stopwatch = Stopwatch(config.cache_folder)
        encode = make_encode(autoencoder, config.cache, world.device)
        write_latent_cache(
            config.cache_folder,
            images,
            encode,
            config.cache,
            origin,
            world,
            config.data.size,
            config.data.place,
            stopwatch,
        )
        if world.is_main:
            print(f"latents: {len(images)} images in {config.cache_folder} ({stopwatch.seconds():.0f} s)")


def make_encode(autoencoder: Tokenizer, config: CacheConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Model images to what is cached of them; a :class:`UserError` for moments of an autoencoder that has none."""
    if config.posterior != "mean" and not autoencoder.config.gaussian:
        raise UserError(
            f"cache.posterior={config.posterior} needs an autoencoder whose posterior has a variance (regulariser kl, one with a learned "
            "variance, or a Python file whose encode gives a pair): write cache.posterior=mean"
        )
    if config.posterior != "mean" and len(autoencoder.latent_maps):
        raise UserError(
            f"cache.posterior={config.posterior} keeps what the encoder says before the latent map {autoencoder.config.latent_map.name} maps it, "
            "and the decoder wants it mapped: write cache.posterior=mean"
        )
    bf16 = config.precision == "bfloat16" or (config.precision == "auto" and device.type == "cuda")

    def encode(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext():
            if config.posterior == "mean":
                return autoencoder.encode(images)
            encoded = autoencoder.posterior(images)
            return torch.cat([encoded.mean, encoded.logvar], dim=-1)  # (B, T, 2 C)

    return encode
