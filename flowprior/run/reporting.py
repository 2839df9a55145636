"""A run's metrics: JSON lines to compute with, TensorBoard to look at, a progress bar while it runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from flowprior.errors import UserError
from flowprior.run.files import json_text, write_bytes

# Figures of the machine and not of the run: steps per second, and the share of the time in which the process that waited longest waited for batches.
TIMINGS = ("steps_per_second", "waiting_for_data")


class RunLog:
    """Scalars by step, to ``log.jsonl`` and TensorBoard.

    Args:
        folder: of the stage.
        start_step: lines of later steps, written by a run that was interrupted after its last checkpoint, are dropped.
        tensorboard: write event files as well, where tensorboard is installed.
    """

    def __init__(self, folder: Path, start_step: int = 0, tensorboard: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "log.jsonl"
        kept = [row for row in read_log(self.file) if row["step"] <= start_step]
        write_bytes(self.file, "".join(_line(row) for row in kept).encode())
        self.writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append one row; numbers that are not finite are written as strings, so that every line stays strict JSON."""
        with open(self.file, "a") as file:
            file.write(_line({"step": step, **values}))
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _line(row: dict[str, Any]) -> str:
    odd = {name: str(value) for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
    return json_text(row | odd) + "\n"


def read_log(file: Path) -> list[dict[str, Any]]:
    """The rows of a ``log.jsonl``; a last line that a killed process left unfinished is passed over."""
    if not file.is_file():
        return []
    rows, lines = [], file.read_bytes().splitlines()
    for number, line in enumerate(lines):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError("no row of a step")
            rows.append(row)
        except (ValueError, RecursionError) as error:
            if number + 1 < len(lines):
                raise UserError(f"line {number + 1} of {file} is damaged: delete the line") from error
    return rows
