"""Stage 3's step, and sampling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World
from flowprior.training.compilation import compile_parts
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom
from generation.generator import GeneratorObjective
from mar.masking import masked_count
from mar.model import SIZES, MARConfig
from mar.sampler import SamplerConfig, sample_latents
from scripts.benchmarks.measure import Case

MEAN_MASK_RATIO = 0.867  # of a normal number around 1 with deviation 0.25 between 0.7 and 1
TINY = dict(width=32, encoder_depth=1, decoder_depth=1, heads=2, buffer_tokens=4, head_width=16, head_depth=1)
EFFICIENT = {"solver": "ab2", "head_evaluations": 10, "encoder_every": 4}  # as in mar/configs/imagenet_efficient.yaml
EXACT = {"skip_unread": True, "share_first": True}


def mar_step(level: str, device: torch.device, folder: Path) -> Case:
    """With the mean number of masked tokens: every block in full, the last one where it is read, and besides one time for a token's pairs."""
    batch = {"tiny": 2, "quick": 1, "full": 8, "gpu": 128}[level]
    tokens, channels = (8, 2) if level == "tiny" else (64, 32)
    config = MARConfig(**(TINY if level == "tiny" else {}))
    objective = GeneratorObjective(config.build(tokens, channels, 1000), LatentNormaliser(channels)).to(device)
    train = TrainConfig(steps=10**9, global_batch=batch, compile=device.type == "cuda")
    loop = TrainingLoop(objective, objective.model, train, OptimConfig(), World(device=device), progress=False)
    loop.step = usual_step(config, tokens, train.seed)
    labels = torch.arange(batch) % 1000
    batches = itertools.repeat({"latents": torch.randn(batch, tokens, channels), "label": labels})

    def step(**options: bool) -> Callable[[], object]:
        def call() -> object:
            vars(config).update(options)
            return loop.train_step(batches)

        return call

    size = f"{batch} images of {tokens} tokens, width {config.width}, {config.pairs} pairs"
    variants = {
        "whole blocks": step(skip_unread=False, pairs_share_time=False),
        "skip_unread": step(skip_unread=True, pairs_share_time=False),
        "skip_unread and pairs_share_time": step(skip_unread=True, pairs_share_time=True),
    }
    return Case(size, "images", batch, variants)


def usual_step(config: MARConfig, tokens: int, seed: int) -> int:
    """A step whose number of masked tokens is the mean one: the loop's own draw, repeated in every call."""

    wanted = math.ceil(tokens * MEAN_MASK_RATIO)
    return min(range(50), key=lambda step: abs(masked_count(config, tokens, StepRandom(seed, step)) - wanted))


def mar_sampling(level: str, device: torch.device, folder: Path) -> Case:
    """Guidance 3; the plain sampler, the exact savings, and the preset with fewer buffer tokens, evaluations and encodings."""
    batch, ar_steps, head_steps = {"tiny": (2, 3, 4), "quick": (1, 2, 10), "full": (2, 8, 25), "gpu": (64, 64, 100)}[
        level
    ]
    tokens, channels = (8, 2) if level == "tiny" else (64, 32)
    plain = MARConfig(**(TINY if level == "tiny" else {}))
    fewer = replace(plain, buffer_tokens=1 if level == "tiny" else SIZES["mar_efficient"]["buffer_tokens"])
    models = [config.build(tokens, channels, 1000).eval().requires_grad_(False).to(device) for config in (plain, fewer)]
    if device.type == "cuda":
        for model in models:
            compile_parts(model)
    labels, graphs = torch.arange(batch, device=device), {"cuda_graphs": device.type == "cuda"}

    def sampling(model: torch.nn.Module, **options: object) -> Callable[[], object]:
        config = SamplerConfig(**{"ar_steps": ar_steps, "head_steps": head_steps, **options})  # type: ignore[arg-type]

        def call() -> object:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                return sample_latents(model, labels, list(range(batch)), 3.0, config)

        return call

    savings = {"exact savings": (models[0], EXACT), "efficient": (models[1], EXACT | EFFICIENT)}
    ways = {"plain": (models[0], {})} | savings
    variants = {name: sampling(model, **options, **graphs) for name, (model, options) in ways.items()}
    counted = {name: sampling(model, **options) for name, (model, options) in ways.items()}
    size = f"{batch} images, {ar_steps} steps, {head_steps} head evaluations, guidance, width {plain.width}"
    return Case(size, "images", batch, variants, counted=counted)
