"""Seconds, rate, memory and largest kernels of one call on the device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from flowprior.training.run_folder import peak_memory_gb
from scripts.benchmarks.measure import data_sheet_rate, finish, largest_kernels, matmul_rate
from scripts.gpu_check.parts import Context


def figures(
    context: Context,
    call: Callable[[], Any],
    samples: int,
    flop: float,
    warm_up: int = 3,
    seconds: float = 1.5,
    kernels: bool = True,
) -> dict[str, Any]:
    """What a table row needs of ``call``, which processes ``samples`` with ``flop`` operations: the median of calls over ``seconds``.

    ``flop`` is what the work needs, without what activation checkpointing computes twice: the share of the data sheet's rate is then the MFU.
    """
    device, gpu = context.device, context.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    for _ in range(warm_up):
        call()
    finish(device)
    warm_up_seconds, times = time.perf_counter() - start, []
    limit = time.perf_counter() + (0.1 if context.tiny else seconds)
    while len(times) < 3 or (time.perf_counter() < limit and len(times) < 500):
        start = time.perf_counter()
        call()
        finish(device)
        times.append(time.perf_counter() - start)
        if times[-1] > seconds:
            break
    median = sorted(times)[len(times) // 2]
    row = {
        "seconds": median,
        "samples": samples,
        "samples_per_second": samples / median,
        "tflop": flop / 1e12,
        "tflop_per_second": flop / median / 1e12,
        "peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9 if gpu else peak_memory_gb(),
        "warm_up_seconds": warm_up_seconds,
    }
    if sheet := data_sheet_rate(device):
        row["mfu"] = flop / median / sheet
    if kernels:
        row["largest_kernels"] = largest_kernels(call, device, 3)
    return row


def report_rate(context: Context) -> None:
    """The matmul rate of this process, for the shares of it."""
    if not context.tiny:
        context.report("matmul_tflop_per_second", matmul_rate(context.device, 0.3) / 1e12)


def largest_batch(context: Context, sizes: list[int], step: Callable[[int], Any]) -> int:
    """The first of ``sizes`` whose ``step`` fits into the device's memory.

    Raises:
        torch.OutOfMemoryError: not even the last one does.
    """
    for size in sizes:
        try:
            step(size)
            return size
        except torch.OutOfMemoryError:
            if size == sizes[-1]:
                raise
        torch.cuda.empty_cache()
    raise ValueError("there is no size to try")
