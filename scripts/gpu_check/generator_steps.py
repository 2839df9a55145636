"""Stage 3's step with SiT-XL and with the autoregressive flow of 56 layers, on 64 tokens of 32 channels: compiled, as their presets are."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch

from flowprior.distributed import World
from flowprior.training.compilation import compile_parts
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from scripts.benchmarks.measure import count_flop
from scripts.gpu_check.measuring import largest_batch, metrics, report_rate
from scripts.gpu_check.parts import Context
from scripts.gpu_check.subjects import SUBJECTS

BATCHES = {"SiT": [256], "normalizing flow": [256, 128, 64]}


def run(context: Context) -> None:
    """Report each one's step with the largest batch that fits."""
    report_rate(context)
    for name, sizes in BATCHES.items():
        generator_step(context, name, [4] if context.tiny else sizes)
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def generator_step(context: Context, name: str, sizes: list[int]) -> None:
    """Report the step of the subject ``name``."""
    subject = SUBJECTS[name](context.tiny, context.device, True)
    objective = subject.objective.to(context.device)
    train = TrainConfig(steps=10**9, global_batch=sizes[0], log_steps=10**9)
    optim = replace(subject.optim, warmup_steps=0, schedule="constant")
    loop = TrainingLoop(objective, subject.model, train, optim, World(device=context.device), progress=False)
    compile_parts(subject.model)

    def step(images: int, stance: str = "default") -> Callable[[], object]:
        batch = {
            key: value[torch.arange(images) % len(value)].to(context.device) for key, value in subject.batch.items()
        }

        def call() -> object:
            with torch.compiler.set_stance(stance):
                return loop.train_step(itertools.repeat(batch))

        return call

    images = largest_batch(context, sizes, lambda size: step(size, "force_eager")())
    flop = count_flop(step(images, "force_eager"), context.device)
    row = metrics(context, step(images), images, flop)
    context.report(f"{name}, {images} images of {subject.size_of_model}", row)
