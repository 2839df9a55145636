"""Stage 2's step at the paper's size: ViT-L twice at 256 px."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import replace

import torch

from flowprior.distributed import World
from flowprior.training.compilation import compile_parts
from flowprior.training.loop import TrainingLoop
from scripts.benchmarks.measure import count_flop
from scripts.gpu_check.measuring import largest_batch, metrics, report_rate
from scripts.gpu_check.parts import Context
from scripts.gpu_check.subjects import random_prior, recipe
from tokenizer.train_ae import build_objective


def run(context: Context) -> None:
    """Report every way of making the step, at the largest batch that fits."""
    config, left_out = recipe(context.tiny)
    config.train = replace(config.train, steps=10**9, log_steps=10**9)
    world = World(device=context.device)
    prior = random_prior(config.model.channels, context.tiny)
    with torch.device(context.device):  # drawing 600 million weights takes the CPU half a minute
        objective = build_objective(config, None, world, 1000, prior)
    loop = TrainingLoop(objective, objective.autoencoder, config.train, config.optim, world, progress=False)
    compile_parts(objective.autoencoder, backward_again=True)
    parts = {"perceptual": objective.perceptual, "adversary": objective.adversary}
    side, encoder, decoder = config.data.size, objective.autoencoder.encoder, objective.autoencoder.decoder
    context.report("size", f"images of {side} px, preset imagenet_qwen")
    context.report("left_out", left_out)
    report_rate(context)

    def step(batch: int, full: bool = False, recompute: bool = False, compiled: bool = True) -> Callable[[], object]:
        images = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device=context.device)
        stream = itertools.repeat({"image": images})

        def call() -> object:
            for name, part in parts.items():
                setattr(objective, name, part if full else None)
            encoder.recompute = decoder.recompute = recompute
            stance = contextlib.nullcontext() if compiled else torch.compiler.set_stance("force_eager")
            with stance:
                return loop.train_step(stream)

        return call

    sizes = [4, 2] if context.tiny else [64, 48, 32]
    flop_per_image = count_flop(step(sizes[-1], compiled=False), context.device) / sizes[-1]
    full_flop = count_flop(step(sizes[-1], full=True, compiled=False), context.device) / sizes[-1]
    ways = {
        "compiled": {},
        "eager": {"compiled": False},
        "compiled, every loss": {"full": True},
        "compiled, activation checkpointing": {"recompute": True},
    }
    for name, options in ways.items():
        choices = [2 * sizes[0], *sizes] if options.get("recompute") else sizes
        batch = largest_batch(context, choices, lambda size, options=options: step(size, **options)())
        flop = batch * (full_flop if options.get("full") else flop_per_image)
        measured = metrics(context, step(batch, **options), batch, flop)
        if options.get("recompute"):
            both, once = (
                count_flop(step(sizes[-1], recompute=way, compiled=False), context.device) for way in (True, False)
            )
            measured["recomputed_tflop"] = batch * (both - once) / sizes[-1] / 1e12
        context.report(name, measured)
