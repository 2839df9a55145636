"""Seconds, rate, memory and largest kernels of one call on the device."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from flowprior.run.run_folder import peak_memory_gb
from scripts.benchmarks.measure import data_sheet_rate, finish, matmul_rate
from scripts.gpu_check.parts import Context

# What a kernel does, by what its name holds; the first that fits counts.
KINDS = {
    "attention": ("sdpa", "flash", "fmha", "attention", "cudnn::fusion"),
    "products": ("nvjet", "gemm", "cutlass", "xmma", "cublas", "gemv"),
    "compiled": ("triton",),
    "optimiser and average": ("multi_tensor_apply",),
    "layer norm": ("layer_norm",),
    "copies and casts": ("copy", "memcpy", "memset"),
    "convolutions": ("conv",),
    "reductions": ("reduce",),
    "elementwise": ("elementwise",),
}


def metrics(
    context: Context,
    call: Callable[[], Any],
    samples: int,
    flop: float,
    warm_up: int = 3,
    seconds: float = 1.5,
    kernels: bool = True,
) -> dict[str, Any]:
    """What a table row needs of ``call``, which processes ``samples`` with ``flop`` operations: the median of calls over ``seconds``.

    ``flop``, 0 where it is not counted, is what the work needs, without what activation checkpointing computes twice: the share of the data
    sheet's rate is then the MFU.
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
        **rates(context, flop, median),
        "peak_memory_gb": torch.cuda.max_memory_allocated(device) / 1e9 if gpu else peak_memory_gb(),
        "warm_up_seconds": warm_up_seconds,
    }
    if kernels and gpu:
        times = kernel_seconds(call, device)
        total = sum(times.values())
        row["gpu_busy"] = total / median
        row["largest_kernels"] = {name: each / total for name, each in Counter(times).most_common(3)}
        row["by_kind"] = by_kind(times)
    return row


def rates(context: Context, flop: float, seconds: float) -> dict[str, float]:
    """What ``flop`` operations in ``seconds`` are; nothing where they were not counted."""
    if not flop:
        return {}
    row = {"tflop": flop / 1e12, "tflop_per_second": flop / seconds / 1e12}
    sheet = data_sheet_rate(context.device)
    return row | ({"mfu": flop / seconds / sheet} if sheet else {})


def kernel_seconds(call: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """The seconds that every kernel of one call takes on a GPU, by the start of its name."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        finish(device)
    rows = [r for r in profiler.key_averages() if r.device_type == DeviceType.CUDA and not r.is_user_annotation]
    times: Counter[str] = Counter()
    for row in rows:
        times[row.key[:160]] += row.self_device_time_total / 1e6
    return dict(times)


def by_kind(times: dict[str, float]) -> dict[str, float]:
    """The share of every kind of kernel in all kernels' time, the largest first."""
    kinds: Counter[str] = Counter()
    for name, seconds in times.items():
        kinds[next((kind for kind, signs in KINDS.items() if any(sign in name for sign in signs)), "other")] += seconds
    total = sum(times.values()) or 1.0
    return {kind: seconds / total for kind, seconds in kinds.most_common()}


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
