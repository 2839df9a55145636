"""Parts that go wrong on purpose, for rehearsals: each must cost itself and nothing else."""

from __future__ import annotations

import time

import torch

from scripts.gpu_check.parts import Context


def run(context: Context, how: str) -> None:
    """Report once, and go wrong."""
    context.report("before", how)
    if how == "fails":
        raise ValueError("this part fails on purpose")
    if how == "runs out of memory":
        torch.empty(1 << 60)
    time.sleep(3600)
