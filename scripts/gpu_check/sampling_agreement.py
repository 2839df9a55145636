"""The same samples: the exact savings of MAR's sampler, and CUDA graphs, against the plain one, in float32 and under bfloat16 autocast."""

from __future__ import annotations

import torch

from mar.model import MARConfig
from mar.sampler import SamplerConfig, sample_latents
from scripts.gpu_check.parts import Context
from scripts.gpu_check.subjects import TINY_MAR, build_mar

WAYS = {
    "skip_unread": {"skip_unread": True},
    "share_first": {"share_first": True},
    "two batches": {"one_batch": False},
    "CUDA graphs": {"cuda_graphs": True},
    "all of them": {"skip_unread": True, "share_first": True, "cuda_graphs": True},
}
BOUNDS = {"float32": 1e-3, "bfloat16": 0.1}


def run(context: Context) -> None:
    """Report how far the samples of every way lie from the plain ones."""
    tokens, channels = (8, 2) if context.tiny else (64, 32)
    config = MARConfig(**(TINY_MAR if context.tiny else {"size": "mar_digits"}))
    model = build_mar(config, tokens, channels).eval().requires_grad_(False).to(context.device)
    labels = torch.arange(8, device=context.device) % 4
    base = {"ar_steps": 4 if context.tiny else 16, "head_steps": 4 if context.tiny else 25}

    def sample(bfloat16: bool, **options: object) -> torch.Tensor:
        with torch.autocast(context.device.type, torch.bfloat16, enabled=bfloat16):
            return sample_latents(model, labels, list(range(8)), 3.0, SamplerConfig(**base, **options)).double()

    context.report("size", f"8 samples of {tokens} tokens, width {config.width}, {base['ar_steps']} steps, guidance 3")
    for precision, bound in BOUNDS.items():
        plain = sample(precision == "bfloat16")
        for way, options in WAYS.items():
            apart = float((sample(precision == "bfloat16", **options) - plain).norm() / plain.norm())
            context.report(f"{way} against plain, {precision}", {"difference": apart, "agree": apart < bound})
