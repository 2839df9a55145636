"""Run a study: every row at every length and seed as a run folder, and one JSON file for each that is finished.

    bash scripts/study.sh [--rows ROW ...] [--lengths LENGTH ...] [--seeds 3] [--jobs N] [--data mnist] [--dry-run]

Run again, it goes on where it was. Cells whose JSON file is there, made here or elsewhere, are skipped. Ctrl-C and SIGTERM end its runs,
each with a checkpoint. DATA names images of your own where the table's presets read files.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from flowprior.data.images import open_images
from flowprior.distributed import World, best_device
from flowprior.errors import UserError, entry_point, one_line
from flowprior.heap import keep_freed_memory
from flowprior.notes import note
from flowprior.run.lock import sole_writer
from flowprior.run.machine import device_name
from flowprior.run.presets import Parser
from study.aside import put_aside
from study.cost import count_tflop, measure_pace
from study.estimate import duration, estimate
from study.kept import cell_file, differences, read_cell, read_cells, write_cell
from study.page import markdown, put_into
from study.plan import Cell, Plan, PlannedStage, Task
from study.runner import Runner, spent_on
from study.stages import PRIOR
from study.table import TABLES, read_table


@entry_point
def main() -> None:
    arguments = parse(sys.argv[1:])
    if arguments.docs:
        put_into()
        return
    torch.set_num_threads(1)  # what is measured here stands for a job
    keep_freed_memory()
    run_study(arguments)


def parse(words: list[str]) -> argparse.Namespace:
    """The command line; what argparse objects to becomes a :class:`UserError`."""
    parser = Parser(prog="bash scripts/study.sh", description=__doc__)
    there = ", ".join(sorted(file.stem for file in TABLES.glob("*.yaml")))
    parser.add_argument("--rows", nargs="+", default=["minimum"], help="rows or groups of rows, all say [minimum]")
    parser.add_argument("--lengths", nargs="+", default=[], help="lengths of the autoencoders' training [all]")
    parser.add_argument("--seeds", type=int, default=3, help="reported seeds, beside the selection seed [3]")
    parser.add_argument("--jobs", type=int, default=0, help="runs at a time [one a GPU, or one a core]")
    parser.add_argument("--data", default="mnist", help=f"the study, of {there}, or the path of a .yaml file [mnist]")
    parser.add_argument("--runs", type=Path, help="folder of the run folders [runs/study/<data>]")
    parser.add_argument("--results", type=Path, help="folder of the finished cells [docs/results/study/<data>]")
    parser.add_argument(
        "--anew", action="store_true", help="put aside what was made from other options, and make it anew"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cells, their commands and the estimate; run nothing"
    )
    parser.add_argument("--docs", action="store_true", help="run nothing: write the tables of docs/study.md anew")

    arguments = parser.parse_args(words)
    if arguments.seeds < 0 or arguments.jobs < 0:
        raise UserError("--seeds and --jobs are whole numbers from 0 on")
    return arguments


def make_plan(arguments: argparse.Namespace) -> tuple[Plan, list[Cell]]:
    """The plan of a command line, and its cells."""
    own = Path(arguments.data)
    file = own if own.suffix in (".yaml", ".yml") else TABLES / f"{arguments.data}.yaml"
    shipped = TABLES / f"{file.stem}.yaml"
    if shipped.is_file() and file.is_file() and file.resolve() != shipped.resolve():
        raise UserError(f"{file} has the name of a study that comes with the project: give it another")
    if not file.is_file():
        there = ", ".join(sorted(known.stem for known in TABLES.glob("*.yaml")))
        raise UserError(f"there is no study '{arguments.data}': there is {there}, or write the path of a .yaml file")
    table = read_table(file)
    if unknown := set(arguments.lengths) - set(table.lengths):
        raise UserError(f"the study {table.name} has no length '{min(unknown)}': it has {', '.join(table.lengths)}")
    data = os.environ.get("DATA")
    extra = (f"data.path={data}",) if data else ()
    plan = Plan(table, arguments.runs or Path("runs/study") / table.name, extra)
    return plan, plan.cells(arguments.rows, arguments.lengths or list(table.lengths), arguments.seeds)


def check_data(plan: Plan, cells: list[Cell]) -> None:
    """A :class:`UserError` unless DATA is given where the study reads files, and only there."""
    for cell in cells[:1]:
        data = plan.task(cell).stages[0].config().data
        if data.source == "files" and not data.path:
            raise UserError(f"name the images: DATA=<folder> bash scripts/study.sh --data {plan.table.name}")
        if data.source != "files" and plan.extra:
            raise UserError(
                f"the study {plan.table.name} reads {data.source} and no images of your own: leave DATA out"
            )


def run_study(arguments: argparse.Namespace) -> None:
    """What the command does."""
    plan, cells = make_plan(arguments)
    check_data(plan, cells)
    results = arguments.results or Path("docs/results/study") / plan.table.name
    for cell in cells:  # words that a stage would refuse are said before anything starts
        for stage in plan.stages_of(cell):
            stage.config()
    device, devices = best_device(), visible_devices()
    jobs = arguments.jobs or len(devices) or os.cpu_count() or 1
    if arguments.dry_run:
        tasks = plan.tasks(cells_left(plan, cells, results, arguments.anew))
        for task in tasks:
            for _, command in task.commands:
                print(f"{task.name}: python -m {' '.join(command)}")
        say_plan(plan, cells, tasks, results, device, jobs)
        return
    with sole_writer(plan.runs, World()):
        left = cells_left(plan, cells, results, arguments.anew)
        tasks = plan.tasks(left)
        say_plan(plan, cells, tasks, results, device, jobs)
        if arguments.anew:
            put_aside(tasks, [cell_file(results, cell) for cell in left])

        def finished(task: Task) -> None:
            if task.cell is not None:
                keep(plan, task.cell, results, device)

        failed = (
            Runner(tasks, jobs, devices, finished, os.environ.get("PYTHON") or sys.executable).run() if tasks else {}
        )
    print(markdown(plan.table, read_cells(results, plan.table.name)))
    if arguments.results is None and own_table(plan):
        put_into()
    if failed:
        print(f"error: {len(failed)} of {len(tasks)} failed, {next(iter(failed))} first: see above", file=sys.stderr)
        sys.exit(1)


def own_table(plan: Plan) -> bool:
    """Whether the study is one of those whose tables stand in docs/study.md."""
    return (TABLES / f"{plan.table.name}.yaml").is_file()


def visible_devices() -> list[str]:
    """GPUs as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


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


def say_plan(plan: Plan, cells: list[Cell], tasks: list[Task], results: Path, device: torch.device, jobs: int) -> None:
    """How much there is, how much is left, and how long that will take."""
    left = [task for task in tasks if task.cell]
    print(f"study {plan.table.name}: {len(cells)} cells, {len(cells) - len(left)} finished ({results})")
    if not left:
        return
    kept, device_shown = read_cells(results, plan.table.name), device_name(device)

    def measure(stages: list[PlannedStage], name: str) -> float:
        config = next(stage.config() for stage in stages if stage.name == name)
        return measure_pace(stages, name).seconds(config)

    def stages_of(task: Task) -> list[PlannedStage]:
        return plan.stages_of(task.cell) if task.cell else list(task.stages)

    pending = [task for task in tasks if task.cell or not (task.run_dir / PRIOR.folder / "result.json").is_file()]
    time, source = estimate(pending, kept, device_shown, stages_of, measure)
    print(
        f"left: {', '.join(task.name for task in left)}\n"
        f"{len(left)} cells and {len(pending) - len(left)} flow priors: about {duration(time)} one at a time, "
        f"{duration(time / jobs)} where {jobs} at a time are as fast as one ({device_shown}; by {source})",
        flush=True,
    )


def keep(plan: Plan, cell: Cell, results: Path, device: torch.device) -> None:
    """Write the JSON file of a finished cell, with its arithmetic; a cell whose arithmetic cannot be counted is kept without it."""
    stages, spent, counted = plan.stages_of(cell), {}, {}
    for stage in stages:
        spent |= {name: value for name, value in spent_on(stage.run_dir).items() if name == stage.name}
        try:
            counted[stage.name] = count_tflop(stages, stage.name)
        except Exception as error:  # whatever a network says to random data: the figures are there
            note(f"the arithmetic of {cell.name}'s {stage.name} is not counted ({one_line(error)})")
    file = cell_file(results, cell)
    write_cell(file, plan.table.name, cell, stages, spent, counted, device)
    note(f"finished {cell.name}: {file}")


if __name__ == "__main__":
    main()
