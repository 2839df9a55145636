"""Seconds, arithmetic and memory of one case: warm-up, medians, and its variants in turn, so that a busy moment falls on all of them."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from flowprior.errors import UserError
from flowprior.run.run_folder import peak_memory_gb

# Dense bfloat16 matmul rates of data sheets, FLOP per second: what MFU is a share of. The first name that a GPU's contains is its own.
DATA_SHEETS = {
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Case:
    """Something whose speed is measured.

    Attributes:
        size: what is measured, for the table.
        unit: of what a call processes.
        samples: so many of them per call.
        variants: calls that do the same work; the first is the plain one that the others are compared with.
        before: calls that bring about the state of a long run, before every timed round of a variant.
        forget: calls that undo what a call of a variant warms, before every timed call: a round of the variant is one call.
        counted: calls whose arithmetic is a variant's, where the counter does not see the variant's own (CUDA graphs).
        left_out: variants that this machine cannot run, and why.
    """

    size: str
    unit: str
    samples: int
    variants: dict[str, Callable[[], Any]] = field(default_factory=dict)
    before: dict[str, Callable[[], Any]] = field(default_factory=dict, kw_only=True)
    forget: dict[str, Callable[[], Any]] = field(default_factory=dict, kw_only=True)
    counted: dict[str, Callable[[], Any]] = field(default_factory=dict, kw_only=True)
    left_out: dict[str, str] = field(default_factory=dict, kw_only=True)

    def add_if_it_runs(self, name: str, call: Callable[[], Any]) -> None:
        """Make ``call`` once; a variant, unless that ends with a :class:`UserError`, as one that compiles does where there is no compiler."""
        try:
            call()
        except UserError as error:
            self.left_out[name] = str(error)
        else:
            self.variants[name] = call


@dataclass(frozen=True)
class Effort:
    """How long to measure: ``rounds`` over all variants, each at least ``seconds`` long, or one call where a variant has to forget."""

    rounds: int
    seconds: float


def measure(case: Case, device: torch.device, effort: Effort, profiled: bool = False) -> dict[str, Any]:
    """The metrics of every variant, and of every one but the first by how much it is faster and does less arithmetic.

    ``profiled`` adds which operators take most of the time.
    """
    rate = matmul_rate(device, 0.2 * effort.seconds)
    counted = {**case.variants, **case.counted}
    flop = {name: count_flop(counted[name], device) for name in case.variants}
    calls = {
        name: 1 if name in case.forget else calls_for(call, device, effort.seconds)
        for name, call in case.variants.items()
    }
    prepare = case.before | case.forget
    times: dict[str, list[float]] = {name: [] for name in case.variants}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(effort.rounds):
        for name, call in case.variants.items():
            prepare.get(name, lambda: None)()
            times[name].append(seconds_of(call, device, calls[name]))
    peak = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else peak_memory_gb()
    # What the machine can do: something else may have had it for a moment.
    rate = max(rate, matmul_rate(device, 0.2 * effort.seconds))
    plain, variants = next(iter(case.variants)), {}
    for name in case.variants:
        seconds = statistics.median(times[name])
        variants[name] = {
            "seconds": seconds,
            "samples_per_second": case.samples / seconds,
            "gflop": flop[name] / 1e9,
            "share_of_matmul_rate": flop[name] / seconds / rate,
        }
        if name != plain:
            pairs = [before / after for before, after in zip(times[plain], times[name])]
            variants[name]["times_faster"] = statistics.median(pairs)
            if flop[name]:
                variants[name]["times_less_flop"] = flop[plain] / flop[name]
        if profiled and flop[name]:  # where there is nothing to count, what takes the time is not PyTorch's
            variants[name]["largest_costs"] = largest_costs(case.variants[name], device)
        if sheet := data_sheet_rate(device):
            variants[name]["mfu"] = flop[name] / seconds / sheet
    return {
        "size": case.size,
        "unit": case.unit,
        "samples": case.samples,
        "matmul_gflop_per_second": rate / 1e9,
        "peak_memory_gb": peak,
        "variants": variants,
        **({"left_out": case.left_out} if case.left_out else {}),
    }


def count_flop(call: Callable[[], Any], device: torch.device) -> int:
    """Of one call on ``device``, by PyTorch's counter, which sees eager kernels only."""
    # The counter knows no other kernel of attention on a CPU.
    kernels = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
    with torch.compiler.set_stance("force_eager"), kernels, FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def largest_costs(call: Callable[[], Any], device: torch.device, count: int = 5) -> dict[str, float]:
    """Of the operators' own time in one call, the share of each of the ``count`` most expensive; on a GPU, of their kernels' time.

    Python between the operators is in neither.
    """
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiler:
        call()
        finish(device)
    # A kernel has a row of its own beside its operator's, and an annotation one that spans what lies within: neither counts.
    rows = [row for row in profiler.key_averages() if row.device_type == DeviceType.CPU and not row.is_user_annotation]
    times: Counter[str] = Counter()
    for row in rows:
        # Every graph has a hash in its name.
        name = "compiled graphs" if "CompiledFxGraph" in row.key else row.key
        times[name] += row.self_device_time_total if gpu else row.self_cpu_time_total
    total = times.total() or 1.0
    return {name: seconds / total for name, seconds in times.most_common(count)}


def calls_for(call: Callable[[], Any], device: torch.device, seconds: float) -> int:
    """How many calls take ``seconds``, found by making ever more of them; on a GPU one more comes before, which compiles.

    Ever more, since the first ones may tell nothing: a loader has batches ready that cost no time.
    """
    if device.type == "cuda":
        call()
    calls = 1
    while (each := seconds_of(call, device, calls)) * calls < seconds:
        calls = max(calls + 1, min(4 * calls, math.ceil(seconds / max(each, 1e-9))))
    return calls


def seconds_of(call: Callable[[], Any], device: torch.device, calls: int) -> float:
    """Mean over ``calls`` calls one after the other."""
    finish(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    finish(device)
    return (time.perf_counter() - start) / calls


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, seconds: float) -> float:
    """FLOP per second of a large matrix product: bfloat16 on a GPU, float32 on a CPU."""
    gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if gpu else (1536, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    with torch.no_grad():
        calls = calls_for(lambda: a @ b, device, seconds)
        return 2 * size**3 / seconds_of(lambda: a @ b, device, calls)


def data_sheet_rate(device: torch.device) -> float | None:
    """What the GPU's data sheet promises, where it is known; of a slice of one or a laptop's, no full card's."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if "MIG" in name or "Laptop" in name:
        return None
    return next((rate for model, rate in DATA_SHEETS.items() if model in name), None)
