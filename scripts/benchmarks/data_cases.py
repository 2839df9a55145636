"""Caching latents, reading them, loading images, and evaluating."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.latent_cache import LatentCache
from flowprior.data.latent_writer import CacheConfig, write_latent_cache
from flowprior.data.loader import training_batches
from flowprior.distributed import World
from flowprior.metrics import Extractor, ImageSet, evaluate_generation
from flowprior.run.config import build_config
from flowprior.run.presets import read_preset
from flowprior.training.config import TrainConfig
from generation.cache_latents import make_encode
from scripts.benchmarks.measure import Case
from tokenizer.autoencoder import Autoencoder
from tokenizer.config import PRESETS, AEConfig

NOISE = 24.0  # of 255: with it a file has 110 kB


def _first(source: object, count: int) -> object:
    """The digits, cut to ``count`` images."""
    source.images, source.labels = source.images[:count], source.labels[:count]  # type: ignore[attr-defined]
    return source


def latent_caching(level: str, device: torch.device, folder: Path) -> Case:
    """The digits through the encoder into a cache on disk, its checksum included."""
    preset, count = {"tiny": ("digits", 32), "gpu": ("imagenet_qwen", 1797)}.get(level, ("digits", 512))
    config = build_config(AEConfig, read_preset(PRESETS / f"{preset}.yaml", PRESETS))
    config.model.encoder.pretrained = False
    autoencoder = Autoencoder(config.model).requires_grad_(False).to(device)
    images, world = _first(open_images(ImageConfig(size=config.data.size)), count), World(device=device)
    cache = CacheConfig()

    def call() -> None:
        shutil.rmtree(folder / "cached", ignore_errors=True)
        encode = make_encode(autoencoder, cache, device)
        write_latent_cache(folder / "cached", images, encode, cache, {}, world)  # type: ignore[arg-type]

    return Case(
        f"{count} images of {config.data.size} px, preset {preset}", "images", count, {"encode and write": call}
    )


def cache_reading(level: str, device: torch.device, folder: Path) -> Case:
    """Batches of 256 training images in random order, from a cache of 64 x 32 latents in as many shards as ImageNet has: in files, and held on
    the device as one tensor."""
    count, batch, shard_images = (64, 8, 16) if level == "tiny" else (20_000, 256, 64)

    class Blank:
        kind, num_classes, class_names = "none", 10, [str(n) for n in range(10)]

        def __len__(self) -> int:
            return count

        def batch(self, keys: list) -> dict[str, torch.Tensor]:
            index = torch.tensor([key.index for key in keys])
            return {"image": torch.zeros(len(keys), 3, 1, 1, dtype=torch.uint8), "label": index % 10, "index": index}

    config = CacheConfig(batch=4096, shard_images=shard_images)
    write_latent_cache(folder / "read", Blank(), lambda x: torch.randn(len(x), 64, 32), config, {}, World())
    in_files, held = (LatentCache(folder / "read", verify=False) for _ in range(2))
    held.move_to(device)

    def reading(cache: LatentCache) -> Callable[[], object]:
        stream = iter(training_batches(cache, TrainConfig(global_batch=batch), World(device=device)))
        return lambda: {name: value.to(device, non_blocking=True) for name, value in next(stream).items()}

    size = f"{batch} of {count} images, 64 x 32, float16, {len(in_files.latents)} shards"
    return Case(size, "images", batch, {"in files": reading(in_files), "held as one tensor": reading(held)})


def image_loading(level: str, device: torch.device, folder: Path) -> Case:
    """JPEG files of 500 x 375 pixels, decoded, cropped to 256 and mirrored, by the training's process or by others beside it."""
    count, batch, size, rest = (8, 4, 32, 0.0) if level == "tiny" else (256, 32, 256, 1.0)
    numbers = (0, 8, 16) if level == "gpu" else (0, 2)
    path = jpeg_folder(folder / "images", count)
    images = open_images(ImageConfig(source="files", path=str(path), size=size, flip=True))
    streams = {}
    for processes in numbers:
        config = TrainConfig(global_batch=batch, loader_workers=processes)
        streams[f"{processes} processes"] = iter(training_batches(images, config, World(device=device)))

    def call(stream: object) -> object:
        batch = next(stream)  # type: ignore[call-overload]
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}

    variants = {name: lambda stream=stream: call(stream) for name, stream in streams.items()}
    # Batches that were made while another variant was measured are taken first, and loaders that still make some are left to it.
    before = {
        f"{n} processes": lambda n=n: [next(streams[f"{n} processes"]) for _ in range(2 * n)] if n else time.sleep(rest)
        for n in numbers
    }
    return Case(f"{batch} JPEG files, 500 x 375 to {size} px", "images", batch, variants, before=before)


def jpeg_folder(folder: Path, count: int) -> Path:
    """``folder``, filled with one class of JPEG files: soft colours and noise, pixels and bytes (110 kB) of ImageNet's files in the mean."""
    random = np.random.default_rng(0)
    (folder / "class").mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + random.normal(0, NOISE, smooth.shape)
        picture = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        picture.save(folder / "class" / f"{number:04d}.jpg", quality=90)
    return folder


def evaluation(level: str, device: torch.device, folder: Path) -> Case:
    """FID, inception score, precision and recall, and recognised share of digits against digits, features included."""
    count = 200 if level == "tiny" else 1797
    images = open_images(ImageConfig())
    pictures, labels = images.images[:count], images.labels[:count]  # type: ignore[attr-defined]
    extractor = Extractor("digits", device=device)

    def call() -> dict[str, float]:
        return evaluate_generation(ImageSet(pictures, extractor, labels), ImageSet(pictures, extractor, labels))

    return Case(f"{count} images of 32 px against as many", "images", count, {"all metrics": call})
