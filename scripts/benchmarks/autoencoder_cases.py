"""Stage 2's step, alone and fed from image files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.loader import training_batches
from flowprior.distributed import World
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import build_config
from flowprior.run.presets import read_preset
from flowprior.training.loop import TrainingLoop
from scripts.benchmarks.data_cases import jpeg_folder
from scripts.benchmarks.measure import Case
from tokenizer.config import PRESETS, AEConfig
from tokenizer.train_ae import build_objective
from tokenizer.vit import ViTConfig

SMALL_PRIOR = {"width": 256, "depth": 3}


def autoencoder_step(level: str, device: torch.device, folder: Path) -> Case:
    """Of the paper's autoencoder on a GPU, of the digits' on a CPU; pixel and alignment losses, since the others need weights of other networks.
    In full and on a GPU also compiled, where there is a compiler."""
    preset, batch = {"gpu": ("imagenet_qwen", 32), "tiny": ("digits", 4)}.get(level, ("digits", 64))
    config = _config(preset, batch)

    def step() -> Callable[[], object]:
        loop = _loop(config, {} if level == "gpu" else SMALL_PRIOR, device)
        return partial(loop.train_step, _in_memory(config))

    plain = step()
    plain()  # makes the modulations of a grid of times, once in many steps
    size = f"{batch} images of {config.data.size} px, preset {preset}, pixel and alignment losses"
    case = Case(size, "images", batch, {"plain": plain})
    if level in ("full", "gpu"):
        config.train = replace(config.train, compile=True)
        case.add_if_it_runs("compiled", step())
    return case


def autoencoder_step_from_files(level: str, device: torch.device, folder: Path) -> Case:
    """At 256 px, with images that lie in memory, or decoded from JPEG files by processes beside the training: as fast if they keep ahead of it."""
    batch, processes = {"tiny": (4, 1), "gpu": (32, 8)}.get(level, (8, 1))
    config = _config("imagenet_qwen", batch)
    if level != "gpu":
        small = {"tiny": {"width": 16, "depth": 1, "heads": 1}}.get(level, {"width": 192, "depth": 4, "heads": 3})
        config.model.encoder = config.model.decoder = ViTConfig(**small)
    loop, in_memory = _loop(config, {} if level == "gpu" else SMALL_PRIOR, device), _in_memory(config)
    path = jpeg_folder(folder / "images", 8 if level == "tiny" else 256)
    images = open_images(ImageConfig(source="files", path=str(path), size=config.data.size, flip=True))
    files = iter(training_batches(images, replace(config.train, loader_workers=processes), World(device=device)))
    loop.train_step(in_memory)
    variants = {
        "images in memory": lambda: loop.train_step(in_memory),
        f"JPEG files, {processes} processes": lambda: loop.train_step(files),
    }
    widths = f"ViT of width {config.model.encoder.width}" if level != "gpu" else "preset imagenet_qwen"
    ready = {f"JPEG files, {processes} processes": lambda: [next(files) for _ in range(2 * processes)]}
    return Case(f"{batch} images of {config.data.size} px, {widths}", "images", batch, variants, before=ready)


def _config(preset: str, batch: int) -> AEConfig:
    """Of pixel and alignment losses, with random weights."""
    config = build_config(AEConfig, read_preset(PRESETS / f"{preset}.yaml", PRESETS))
    config.loss.perceptual_weight = config.loss.adversarial.weight = 0.0
    config.model.encoder.pretrained = False
    config.train = replace(
        config.train, steps=10**9, global_batch=batch, accumulation=1, log_steps=10**9, compile=False
    )
    return config


def _loop(config: AEConfig, prior_sizes: dict[str, int], device: torch.device) -> TrainingLoop:
    channels, world = config.model.channels, World(device=device)
    velocity = VelocityMLP(channels, **prior_sizes)
    prior = FlowPrior(velocity, TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, channels)))
    objective = build_objective(config, None, world, 10, prior)
    return TrainingLoop(objective, objective.autoencoder, config.train, config.optim, world, progress=False)


def _in_memory(config: AEConfig) -> Iterator[dict[str, torch.Tensor]]:
    images = torch.randint(0, 256, (config.train.global_batch, 3, config.data.size, config.data.size))
    return itertools.repeat({"image": images.to(torch.uint8)})
