"""What of a study is left to make, and how long that will take."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

import torch

from flowprior.data.images import open_images
from flowprior.errors import UserError
from flowprior.run.machine import device_name
from study.cost import measure_pace
from study.estimate import duration, estimate
from study.kept import cell_file, differences, measured_otherwise, read_cell, read_cells
from study.plan import Cell, Plan, PlannedStage, Task
from study.reports import read_reports, report_file
from study.stages import PRIOR


class Left(NamedTuple):
    """Cells that are to be trained, and cells that are to be reported on."""

    cells: list[Cell]
    reports: list[Cell]

    def tasks(self, plan: Plan) -> list[Task]:
        """Every task, each before those that wait for it; the reports come last."""
        return [*plan.tasks(self.cells), *map(plan.report_task, self.reports)]


def cells_left(plan: Plan, cells: list[Cell], results: Path, anew: bool) -> list[Cell]:
    """The cells that have no JSON file yet, and with ``anew`` those whose file was made from other options.

    Raises:
        UserError: without ``anew``, where there are such files, or files of other images.
    """
    left, stale, images = [], [], {}

    def images_now(cell: Cell) -> str:
        data = next(stage for stage in plan.stages_of(cell) if stage.name == "autoencoder").config().data
        if repr(data) not in images:
            images[repr(data)] = open_images(data).fingerprint()
        return images[repr(data)]

    for cell in cells:
        file = cell_file(results, cell)
        if not file.is_file():
            left.append(cell)
            continue
        kept = read_cell(file, plan.table.name)
        told = differences(kept, plan.stages_of(cell)) or ["other images"] * (kept["data"] != images_now(cell))
        if told:
            stale.append(f"{file} ({'; '.join(told[:3])})")
            left.append(cell)
    if stale and not anew:
        more = f", and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise UserError(
            f"{stale[0]}{more} was made from other options than this study's: write --anew to put it aside and make it anew"
        )
    return left


def measured_again(task: Task, results: Path, study: str) -> list[PlannedStage]:
    """Stages whose sampling or measuring commands run again, since their kept file says other options; none of a task that has no file yet."""
    if task.cell is None or not (file := (report_file if task.is_report else cell_file)(results, task.cell)).is_file():
        return []
    if task.is_report:
        return list(task.stages)
    measured = read_cell(file, study).get("measured") or {}
    return [stage for stage in task.stages if measured_otherwise(measured.get(stage.name) or {}, stage)]


def say_plan(plan: Plan, cells: list[Cell], tasks: list[Task], results: Path, device: torch.device, jobs: int) -> None:
    """How much there is, how much is left, and how long that will take."""
    left = [task for task in tasks if task.cell and not task.is_report]
    reports = [task for task in tasks if task.is_report]
    print(f"study {plan.table.name}: {len(cells)} cells, {len(cells) - len(left)} finished ({results})")
    if reports:
        print(
            f"reports left: {len(reports)}{_time_of_reports(len(reports), results, plan, device_name(device))}",
            flush=True,
        )
    if not left:
        return
    kept, device_shown = read_cells(results, plan.table.name), device_name(device)

    def measure(stages: list[PlannedStage], name: str) -> float:
        config = next(stage.config() for stage in stages if stage.name == name)
        return measure_pace(stages, name).seconds(config)

    def stages_of(task: Task) -> list[PlannedStage]:
        return plan.stages_of(task.cell) if task.cell else list(task.stages)

    trained = [task for task in tasks if not task.is_report]
    pending = [task for task in trained if task.cell or not (task.run_dir / PRIOR.folder / "result.json").is_file()]
    time, source = estimate(pending, kept, device_shown, stages_of, measure)
    print(
        f"left: {', '.join(task.name for task in left)}\n"
        f"{len(left)} cells and {len(pending) - len(left)} flow priors: about {duration(time)} one at a time, "
        f"{duration(time / jobs)} where {jobs} at a time are as fast as one ({device_shown}; by {source})",
        flush=True,
    )


def _time_of_reports(count: int, results: Path, plan: Plan, device: str) -> str:
    """In words, as finished reports of this device took; empty where there are none."""
    clocks = {"cpu": "cpu_seconds", "cuda": "seconds"}
    kept = [report for report in read_reports(results, plan.table.name) if report["device"] == device]
    took = [report["spent"][clocks[report["device_type"]]] for report in kept]
    return f", about {duration(count * statistics.fmean(took))} one at a time" if took else ""
