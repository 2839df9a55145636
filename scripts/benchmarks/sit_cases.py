"""Stage 3's step and sampling with SiT: the digits' on a CPU, SiT-XL on a GPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World
from flowprior.training.compilation import compile_parts
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.optim import OptimConfig
from generation.generator import GeneratorObjective
from scripts.benchmarks.measure import Case
from sit.model import SiT, SiTConfig
from sit.sampler import SamplerConfig, sample_latents

CLASSES, REALS_INTERVAL = 10, (0.0, 0.75)  # of arXiv 2502.00359


def build(level: str, device: torch.device) -> tuple[SiT, str]:
    """A network of the level's size, and its size in words."""
    if level == "gpu":
        tokens, channels, config = 64, 32, SiTConfig(size="XL")
    else:
        tokens, channels = 8, 8
        config = SiTConfig(width=32, depth=1, heads=2) if level == "tiny" else SiTConfig(size="digits")
    model = config.build(tokens, channels, CLASSES).to(device)
    return model, f"{tokens} tokens, width {config.width}, depth {config.depth}"


def sit_step(level: str, device: torch.device, folder: Path) -> Case:
    """One time per image."""
    batch = {"tiny": 4, "quick": 64, "full": 64, "gpu": 256}[level]
    model, size = build(level, device)
    objective = GeneratorObjective(model, LatentNormaliser(model.channels)).to(device)
    train = TrainConfig(steps=10**9, global_batch=batch, compile=device.type == "cuda")
    loop = TrainingLoop(objective, model, train, OptimConfig(), World(device=device), progress=False)
    latents = torch.randn(batch, model.tokens, model.channels)
    batches = itertools.repeat({"latents": latents, "label": torch.arange(batch) % CLASSES})
    return Case(f"{batch} images of {size}", "images", batch, {"plain": partial(loop.train_step, batches)})


def sit_sampling(level: str, device: torch.device, folder: Path) -> Case:
    """By Heun's method at guidance 3, everywhere or on ReaLS's interval."""
    batch, steps = {"tiny": (4, 4), "quick": (64, 4), "full": (64, 12), "gpu": (256, 50)}[level]
    model, size = build(level, device)
    model.eval().requires_grad_(False)
    if device.type == "cuda":
        compile_parts(model)
    labels = torch.arange(batch, device=device) % CLASSES

    def sampling(**options: object) -> Callable[[], object]:
        config = SamplerConfig(steps=steps, **options)  # type: ignore[arg-type]

        def call() -> object:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                return sample_latents(model, labels, list(range(batch)), 3.0, config)

        return call

    variants = {"guided everywhere": sampling(), "guided to t = 0.75": sampling(cfg_interval=REALS_INTERVAL)}
    return Case(f"{batch} images of {size}, {2 * steps} evaluations by Heun, guidance", "images", batch, variants)
