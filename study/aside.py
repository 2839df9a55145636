"""Putting aside what was made from other options: run folders and files get another name, and nothing is deleted."""

from __future__ import annotations

from pathlib import Path

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.run_folder import RunFolder
from study.plan import Task


def put_aside(tasks: list[Task], files: list[Path]) -> None:
    """Rename the run folders of ``tasks`` that hold a stage with other options, and those of ``files`` that are there."""
    for file in files:
        if file.is_file():
            note(f"{file} is made anew; what it said is now in {_rename(file)}")
    for task in tasks:
        if reason := _of_other_options(task):
            note(f"{task.run_dir} {reason}: it is now {_rename(task.run_dir)}")


def _of_other_options(task: Task) -> str:
    for stage in task.stages:
        try:
            RunFolder(stage.run_dir, stage.stage.folder).check(stage.config(), {})
        except UserError as error:
            return f"is put aside ({error})"
    return ""


def _rename(path: Path) -> Path:
    """To the first name that is free; a file no longer counts as a cell's."""
    number = 1
    while (other := path.with_name(f"{path.name}.before-{number}")).exists():
        number += 1
    path.rename(other)
    return other
