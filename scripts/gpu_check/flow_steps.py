"""Stage 1's step at two batch sizes, and the alignment loss with its gradient."""

from __future__ import annotations

from flowprior.training.optim import OptimConfig
from scripts.benchmarks.flow_cases import GROUP_SIZE, PAPER, TINY, alignment, steps
from scripts.benchmarks.measure import count_flop
from scripts.gpu_check.measuring import metrics, report_rate
from scripts.gpu_check.parts import Context

PAPER_STEPS = 1_000_000
# Arithmetic is counted of the first.
WAYS = {"eager": {}, "CUDA graphs": {"cuda_graphs": True}, "compiled": {"compiled": True}}


def run(context: Context) -> None:
    """Report both batch sizes, eager, compiled and replayed, with times of their own and shared ones; then the alignment loss."""
    sizes, batches = (TINY, [32]) if context.tiny else (PAPER, [512, 4096])
    context.report("size", f"width {sizes['width']}, depth {sizes['depth']}, four pairs")
    report_rate(context)
    for batch in batches:
        flop = {}
        for how, options in WAYS.items():
            with_group = steps(sizes, batch, 4, OptimConfig(), context.device, **options)
            for group in (1, GROUP_SIZE):
                name, call = f"{batch} features, a time for {group}, {how}", with_group(group)
                if group not in flop:
                    flop[group] = count_flop(call, context.device)
                row = metrics(context, call, batch, flop[group], seconds=0.7)
                if batch == batches[0]:
                    row["hours_of_the_papers_run"] = row["seconds"] * PAPER_STEPS / 3600
                context.report(name, row)
    case = alignment("tiny" if context.tiny else "gpu", context.device, context.folder)
    for name, call in case.variants.items():
        row = metrics(context, call, case.samples, count_flop(call, context.device), seconds=0.7)
        context.report(f"alignment of {case.size}, {name}", row)
