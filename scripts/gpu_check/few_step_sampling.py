"""Sampling MAR-B by its flow map in two evaluations of the head, and by one pass of the transformer: a batch of 256, and one image.

The models are those of the presets ``imagenet_efficient`` and ``imagenet_fast`` with random weights: what a map draws is
``scripts/compare_samplers.py``'s to say, how fast is said here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from flowprior.training.compilation import compile_parts
from mar.flow_map import FlowMap
from mar.guided import GuidedTransformer
from mar.model import SIZES, MARConfig
from mar.sampler import SamplerConfig, sample_latents
from scripts.benchmarks.mar_cases import EXACT, TINY
from scripts.benchmarks.measure import count_flop
from scripts.gpu_check.measuring import metrics, report_rate
from scripts.gpu_check.parts import Context
from scripts.gpu_check.subjects import build_mar, randomise

MAP = EXACT | {"head": "map", "head_evaluations": 2, "cuda_graphs": True}
EVERY_SECOND = {"encoder_every": 2, "decoder_every": 2}
WAYS = {
    "one pass, map": MAP | {"one_pass": True},
    "map": MAP,
    "map, encoder and decoder every 2nd step": MAP | EVERY_SECOND,
    "one pass, map, encoder and decoder every 2nd step": MAP | EVERY_SECOND | {"one_pass": True},
}
GUIDANCE, SCALE = (1.0, 4.0), 3.0


def run(context: Context) -> None:
    """Report every way at both sizes, with its arithmetic."""
    batch, tokens, channels = (2, 8, 2) if context.tiny else (256, 64, 32)
    ar_steps = 4 if context.tiny else 64
    config = MARConfig(**(TINY if context.tiny else {}))
    config = replace(config, buffer_tokens=1 if context.tiny else SIZES["mar_efficient"]["buffer_tokens"])
    model = build_mar(config, tokens, channels)
    model.flow_map = FlowMap(model.head, GUIDANCE)
    model.guided = GuidedTransformer(model, model.flow_map, GUIDANCE)
    randomise(model.guided)
    model.eval().requires_grad_(False).to(context.device)
    compile_parts(model)
    context.report("size", f"{ar_steps} steps of 2 evaluations by the head's map, guidance, width {config.width}")
    report_rate(context)

    def sampling(images: int, options: dict[str, object]) -> Callable[[], object]:
        sampler = SamplerConfig(ar_steps=ar_steps, **options)
        labels = torch.arange(images, device=context.device) % 1000

        def call() -> object:
            with torch.autocast(context.device.type, torch.bfloat16, enabled=context.device.type == "cuda"):
                return sample_latents(model, labels, list(range(images)), SCALE, sampler)

        return call

    for name, options in WAYS.items():
        for images in (batch, 1):
            call = sampling(images, options)
            flop = (
                count_flop(sampling(images, options | {"cuda_graphs": False}), context.device)
                if images == batch
                else 0.0
            )
            what = "one image" if images == 1 else f"batch {images}"
            context.report(
                f"{name}, {what}", metrics(context, call, images, flop, warm_up=1, seconds=1.0, kernels=False)
            )
