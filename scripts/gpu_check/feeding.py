"""What feeds the steps: JPEG files by 8 and 16 processes, and the latent cache on the device and in the page cache."""

from __future__ import annotations

from typing import Any

from scripts.benchmarks.data_cases import cache_reading, image_loading
from scripts.benchmarks.measure import Case, calls_for, seconds_of
from scripts.gpu_check.parts import Context


def run(context: Context) -> None:
    """Report images a second of every case."""
    level = "tiny" if context.tiny else "gpu"
    cases = {
        "JPEG files": image_loading,
        "latent cache": cache_reading,
    }
    for name, make in cases.items():
        folder = context.folder / name.replace(" ", "_")
        folder.mkdir()
        measured(context, name, make(level, context.device, folder))


def measured(context: Context, name: str, case: Case) -> None:
    """Report every variant of ``case``."""
    for variant, call in case.variants.items():
        before = case.before.get(variant, lambda: None)
        calls = calls_for(call, context.device, 0.02 if context.tiny else 0.7)
        before()
        seconds = seconds_of(call, context.device, calls)
        row: dict[str, Any] = {
            "seconds": seconds,
            "samples": case.samples,
            "samples_per_second": case.samples / seconds,
        }
        context.report(f"{name}: {variant}", {"size": case.size, **row})
