"""The digits' steps, whose networks are small: eager, and replayed from CUDA graphs."""

from __future__ import annotations

from pathlib import Path

from flowprior.distributed import World
from scripts.gpu_check.measuring import metrics
from scripts.gpu_check.parts import Context
from study.cost import training_step
from study.plan import Cell, Plan
from study.table import read_table

TABLE, CELL = Path("study/tables/mnist.yaml"), Cell("flow_semantic", "trained", 1)


def run(context: Context) -> None:
    """Report every stage's step at the sizes of the presets ``mnist``, which are the digits'."""
    extra = ("train.global_batch=4",) if context.tiny else ()
    plan = Plan(read_table(TABLE), context.folder / "runs", extra)
    stages = plan.stages_of(CELL)
    for stage in stages:
        for how, replayed in {"eager": False, "CUDA graphs": True}.items():
            step, samples = training_step(stages, stage.name, World(device=context.device), replayed)
            context.report(f"{stage.name}, {how}", metrics(context, step, samples, flop=0.0, warm_up=20))
