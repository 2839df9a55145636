"""Sampling MAR-B, 64 steps of 100 evaluations with guidance, plain and by the fast ways: a batch of 256, and one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from flowprior.training.compilation import compile_parts
from mar.model import MAR, SIZES, MARConfig
from mar.sampler import SamplerConfig, sample_latents
from scripts.benchmarks.mar_cases import EFFICIENT, EXACT, TINY
from scripts.benchmarks.measure import count_flop
from scripts.gpu_check.measuring import metrics, rates, report_rate
from scripts.gpu_check.parts import Context
from scripts.gpu_check.subjects import build_mar

GRAPHS = {"cuda_graphs": True}


def run(context: Context) -> None:
    """Report seconds first and count arithmetic last, since counting takes as long as sampling."""
    batch, tokens, channels = (2, 8, 2) if context.tiny else (256, 64, 32)
    ar_steps, evaluations = (3, 4) if context.tiny else (64, 100)
    config = MARConfig(**(TINY if context.tiny else {}))
    fewer = replace(config, buffer_tokens=1 if context.tiny else SIZES["mar_efficient"]["buffer_tokens"])
    models = [build_mar(c, tokens, channels).eval().requires_grad_(False).to(context.device) for c in (config, fewer)]
    for model in models:
        compile_parts(model)
    context.report("size", f"{ar_steps} steps of {evaluations} evaluations, guidance, width {config.width}")
    report_rate(context)

    def sampling(model: MAR, images: int, **options: object) -> Callable[[], object]:
        sampler = SamplerConfig(**{"ar_steps": ar_steps, "head_steps": evaluations, **options})
        labels = torch.arange(images, device=context.device) % 1000

        def call() -> object:
            with torch.autocast(context.device.type, torch.bfloat16, enabled=context.device.type == "cuda"):
                return sample_latents(model, labels, list(range(images)), 3.0, sampler)

        return call

    def flop(model: MAR, **options: object) -> float:
        """Of a batch, from one and two evaluations of the head: it is linear in their number, and all of them take the counter minutes."""
        if options.get("head_evaluations"):
            return count_flop(sampling(model, batch, **options), context.device)
        one, two = (count_flop(sampling(model, batch, **options, head_steps=n), context.device) for n in (1, 2))
        return one + (evaluations - 1) * (two - one)

    ways = {
        "exact savings": (models[0], EXACT, GRAPHS),
        "efficient": (models[1], EXACT | EFFICIENT, GRAPHS),
        "plain": (models[0], {}, {}),
    }
    rows = {}
    for name, (model, options, graphs) in ways.items():
        call = sampling(model, batch, **options, **graphs)
        row = rows[name] = metrics(context, call, batch, 0, warm_up=1, seconds=1.0, kernels=False)
        context.report(f"{name}, batch {batch}", row)
        one = sampling(model, 1, **options, **graphs)
        context.report(f"{name}, one image", metrics(context, one, 1, 0, warm_up=1, seconds=1.0, kernels=False))
    for name, (model, options, graphs) in ways.items():
        if not options.get("head_evaluations"):
            rest = sampling(model, batch, **options, **graphs, head_steps=1)
            without = metrics(context, rest, batch, 0, warm_up=1, seconds=1.0)
            rows[name]["share_of_the_head"] = 1 - without["seconds"] / rows[name]["seconds"]
            context.report(f"{name}, batch {batch}, one evaluation of the head", without)
        counted = flop(model, **options)
        rows[name] |= rates(context, counted, rows[name]["seconds"])
        context.report(f"{name}, batch {batch}", rows[name])
