"""200 steps of each stage at the paper's sizes, on random data at the preset's learning rate: none of them may be skipped as not finite."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace

import torch
from torch import Tensor

from flowprior.distributed import World
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from scripts.gpu_check.parts import Context
from scripts.gpu_check.subjects import SUBJECTS


def run(context: Context, name: str) -> None:
    """Report how many steps of the subject ``name`` were skipped, and its losses."""
    steps = 5 if context.tiny else 200
    subject = SUBJECTS[name](context.tiny, context.device, True)
    context.report("size", subject.size)
    if subject.left_out:
        context.report("left_out", subject.left_out)
    objective, world = subject.objective.to(context.device), World(device=context.device)
    batch = next(iter(subject.batch.values()))
    train = TrainConfig(steps=steps, global_batch=len(batch), log_steps=10**9, eval_steps=0, non_finite_steps=10**6)
    optim = replace(subject.optim, warmup_steps=0, schedule="constant")
    loop = TrainingLoop(objective, subject.model, train, optim, world, progress=False)
    losses: list[Tensor] = []
    start = time.perf_counter()
    loop.run(
        itertools.repeat(subject.batch),
        after_optimizer_step=lambda output, step: (losses.append(output.loss), {})[1],
    )
    seconds = time.perf_counter() - start
    weights_finite = all(bool(torch.isfinite(p).all()) for p in objective.parameters())
    context.report(
        f"{steps} steps at learning rate {optim.lr:g}",
        {
            "skipped": loop.skipped.total,
            "first loss": float(losses[0]),
            "last loss": float(losses[-1]),
            "seconds_per_step": seconds / steps,
            "agree": loop.skipped.total == 0 and weights_finite,
        },
    )
