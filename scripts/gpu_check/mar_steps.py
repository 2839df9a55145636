"""Stage 3's step: MAR-B on 64 tokens of 32 channels, and what a number of masked tokens that changes costs a compiled one."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable

import torch

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World
from flowprior.training.compilation import compile_parts
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.optim import OptimConfig
from generation.generator import GeneratorObjective
from mar.model import MARConfig
from scripts.benchmarks.mar_cases import TINY, usual_step
from scripts.benchmarks.measure import count_flop, finish
from scripts.gpu_check.measuring import metrics, report_rate
from scripts.gpu_check.parts import Context

FEWEST_STEPS = 40


def run(context: Context) -> None:
    """Report the step eager and compiled, and compiled with numbers of masked tokens of its own."""
    batch, tokens, channels = (4, 8, 2) if context.tiny else (256, 64, 32)
    config = MARConfig(**(TINY if context.tiny else {}), skip_unread=True)
    torch.manual_seed(0)
    objective = GeneratorObjective(config.build(tokens, channels, 1000), LatentNormaliser(channels)).to(context.device)
    train = TrainConfig(steps=10**9, global_batch=batch, log_steps=10**9)
    world = World(device=context.device)
    loop = TrainingLoop(objective, objective.model, train, OptimConfig(ema_decay=0.9999), world, progress=False)
    compile_parts(objective.model)
    stream = itertools.repeat(
        {
            "latents": torch.randn(batch, tokens, channels, device=context.device),
            "label": torch.arange(batch, device=context.device) % 1000,
        }
    )
    usual = usual_step(config, tokens, train.seed)
    context.report("size", f"{batch} images of {tokens} tokens, width {config.width}, {config.pairs} pairs")
    report_rate(context)

    def step(compiled: bool) -> Callable[[], object]:
        def call() -> object:
            loop.step = usual
            with contextlib.nullcontext() if compiled else torch.compiler.set_stance("force_eager"):
                return loop.train_step(stream)

        return call

    flop = count_flop(step(False), context.device)
    context.report("eager", metrics(context, step(False), batch, flop))
    torch._dynamo.utils.counters.clear()
    context.report("compiled", metrics(context, step(True), batch, flop))
    context.report("compiled, masked tokens that change", changing(context, loop, stream, batch))


def changing(context: Context, loop: TrainingLoop, stream: object, batch: int) -> dict[str, object]:
    """Steps with their own numbers of masked tokens: how many graphs they need, and seconds once those are there."""
    steps = 5 if context.tiny else FEWEST_STEPS
    for number in range(2 * steps):
        if number == steps:
            finish(context.device)
            start = time.perf_counter()
        loop.step = number
        loop.train_step(stream)
    finish(context.device)
    seconds = (time.perf_counter() - start) / steps
    counters = torch._dynamo.utils.counters
    return {
        "seconds": seconds,
        "samples": batch,
        "samples_per_second": batch / seconds,
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "recompile_limit_hit": bool(counters.get("unimplemented") or counters.get("recompile_limit")),
    }
