"""How long what is left will take: by the seconds of finished cells, or else by a few steps of each stage."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

from study.plan import PlannedStage, Task


class Estimate(NamedTuple):
    """Seconds of all that is left, one job at a time, and in words where they come from."""

    seconds: float
    source: str


def estimate(
    tasks: list[Task],
    kept: list[dict[str, Any]],
    device: str,
    stages_of: Callable[[Task], list[PlannedStage]],
    measure: Callable[[list[PlannedStage], str], float],
) -> Estimate:
    """The seconds that ``tasks`` take.

    A stage takes the mean of the seconds per step that finished cells of this device took, those of its own row where there are some; where
    there are none, what ``measure`` says of one such stage stands for all.

    Args:
        tasks: what is left.
        kept: finished cells.
        device: in words, as cells keep it.
        stages_of: all stages that a task's figures depend on.
        measure: seconds of the named one of these stages.
    """
    rates: dict[tuple[str, str], float] = {}
    measured, total = set(), 0.0
    for task in tasks:
        for stage in task.stages:
            row = task.cell.row if task.cell else ""
            steps = stage.config().train.steps
            if (rate := known_rate(kept, device, stage.name, row)) is not None:
                total += rate * steps
                continue
            measured.add(stage.name)
            key = (stage.name, "")
            if key not in rates:
                rates[key] = measure(stages_of(task), stage.name) / steps
            total += rates[key] * steps
    sources = [f"a few steps of {', '.join(sorted(measured))} on this machine, without evaluations"] if measured else []
    if measured != {stage.name for task in tasks for stage in task.stages}:
        sources.insert(0, f"{len([c for c in kept if c.get('device') == device])} finished cells of this device")
    return Estimate(total, " and ".join(sources))


def known_rate(kept: list[dict[str, Any]], device: str, stage: str, row: str) -> float | None:
    """Mean seconds per training step of a stage, with all that comes with it, in finished cells: those of the row, or else all.

    They are the processor's on a CPU, which other work on the machine does not stretch, and the clock's on a GPU.
    """
    clocks = {"cpu": "cpu_seconds", "cuda": "seconds"}
    of_device = [cell for cell in kept if cell.get("device") == device and stage in cell.get("spent", {})]
    rates = [
        (
            cell["row"] == row,
            cell["spent"][stage][clocks[cell["device_type"]]] / cell["made_from"][stage]["train"]["steps"],
        )
        for cell in of_device
    ]
    own = [rate for is_own, rate in rates if is_own]
    return statistics.fmean(own or [rate for _, rate in rates]) if rates else None


def duration(seconds: float) -> str:
    """In words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
