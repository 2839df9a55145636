"""Putting aside what was made from other options: run folders and files get another name, and nothing is deleted."""

from __future__ import annotations

from pathlib import Path

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.files import read_json
from flowprior.run.run_folder import RunFolder
from study.plan import PlannedStage, Task


def put_aside(tasks: list[Task], files: list[Path]) -> None:
    """Rename the run folders of ``tasks`` that hold a stage with other options, and those of ``files`` that are there."""
    for file in files:
        if file.is_file():
            note(f"{file} is made anew; what it said is now in {_rename(file)}")
    renamed = set()
    for task in tasks:  # priors come before the cells that take them
        reason = _of_other_options(task)
        if task.after in renamed and task.run_dir.is_dir():
            reason = reason or f"is put aside with its prior {task.after}"
        if reason:
            renamed.add(task.name)
            note(f"{task.run_dir} {reason}: it is now {_rename(task.run_dir)}")


def _of_other_options(task: Task) -> str:
    for stage in task.stages:
        try:
            RunFolder(stage.run_dir, stage.stage.folder).check(stage.config(), _prior_of(stage))
        except UserError as error:
            return f"is put aside ({error})"
    return ""


def _prior_of(stage: PlannedStage) -> dict[str, str]:
    """The fingerprint of the prior that an autoencoder would take, where that is trained already."""
    prior = getattr(stage.config(), "prior", "")
    result = Path(prior).parent / "result.json"
    return {"prior": read_json(result, "result")["fingerprint"]} if prior and result.is_file() else {}


def _rename(path: Path) -> Path:
    """To the first name that is free; a file no longer counts as a cell's."""
    number = 1
    while (other := path.with_name(f"{path.name}.before-{number}")).exists():
        number += 1
    path.rename(other)
    return other
