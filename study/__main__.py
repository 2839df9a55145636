"""Run a study: every row at every length and seed as a run folder, and one JSON file for each that is finished.

    bash scripts/study.sh [--rows ROW ...] [--lengths LENGTH ...] [--seeds 3] [--jobs N] [--data mnist] [--report] [--dry-run]
    bash scripts/study.sh [--data mnist] --forecast

Run again, it goes on where it was. Cells whose JSON file is there, made here or elsewhere, are skipped. Ctrl-C and SIGTERM end its runs,
each with a checkpoint. DATA names images of your own where the table's presets read files.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from flowprior.distributed import World, best_device
from flowprior.errors import UserError, entry_point, one_line
from flowprior.heap import keep_freed_memory
from flowprior.notes import note
from flowprior.run.files import write_json
from flowprior.run.lock import sole_writer
from flowprior.run.presets import Parser
from study.aside import put_aside
from study.cost import count_tflop
from study.forecast import forecast_file, make_forecast
from study.forecast_page import draw, in_words
from study.kept import cell_file, read_cells, write_cell
from study.left import Left, cells_left, measured_again, say_plan
from study.page import markdown, put_into
from study.plan import Cell, Plan, Task
from study.reports import read_reports, report_file, reports_left, write_report
from study.runner import Runner, forget_seconds, spent_on
from study.table import TABLES, read_table


@entry_point
def main() -> None:
    arguments = parse(sys.argv[1:])
    if arguments.docs:
        put_into()
        return
    if arguments.forecast:
        fit_forecast(arguments)
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
        "--report", action="store_true", help="also the latent report of every cell's autoencoder, some minutes each"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the cells, their commands and the estimate; run nothing"
    )
    parser.add_argument(
        "--forecast", action="store_true", help="run nothing: fit what reports foretell to the finished cells"
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
        data = replace(plan, extra=()).task(cell).stages[0].config().data
        if data.source == "files" and not plan.extra:
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
        tasks = find_left(plan, cells, results, arguments).tasks(plan)
        for task in tasks:
            for command in task.commands:
                print(f"{task.name}: python -m {' '.join(command.words)}")
        say_plan(plan, cells, tasks, results, device, jobs)
        return
    with sole_writer(plan.runs, World()):
        left = find_left(plan, cells, results, arguments)
        tasks = left.tasks(plan)
        say_plan(plan, cells, tasks, results, device, jobs)
        if arguments.anew:
            files = [
                *(cell_file(results, cell) for cell in left.cells),
                *(report_file(results, c) for c in left.reports),
            ]
            again = [
                (task.run_dir, stage) for task in tasks for stage in measured_again(task, results, plan.table.name)
            ]
            put_aside([task for task in tasks if not task.is_report], files)
            for run_dir, stage in again:
                forget_seconds(run_dir, stage.name, stage.stage.measuring)

        failed = run_tasks(plan, tasks, jobs, devices, results, device) if tasks else {}
    print(markdown(plan.table, read_cells(results, plan.table.name)))
    if arguments.results is None and own_table(plan):
        put_into()
    if failed:
        print(f"error: {len(failed)} of {len(tasks)} failed, {next(iter(failed))} first: see above", file=sys.stderr)
        sys.exit(1)


def run_tasks(
    plan: Plan, tasks: list[Task], jobs: int, devices: list[str], results: Path, device: torch.device
) -> dict[str, str]:
    """Run what is left, and keep what is finished; what failed, and why."""
    not_kept: dict[str, str] = {}

    def keep_task(task: Task) -> None:
        try:
            (keep_report if task.is_report else keep)(plan, task.cell, results, device)
        except Exception as error:  # of a task that has run: it is told as others' failures are
            not_kept[task.name] = one_line(error)
            print(f"failed: {task.name}: its file was not written: {one_line(error)}", file=sys.stderr, flush=True)

    # Beside the runner: counting a cell's arithmetic takes seconds, in which other tasks go on to their next commands.
    with ThreadPoolExecutor(max_workers=1) as keeper:

        def finished(task: Task) -> None:
            if task.cell is not None:
                keeper.submit(keep_task, task)

        failed = Runner(tasks, jobs, devices, finished, os.environ.get("PYTHON") or sys.executable).run()
    return failed | not_kept


def find_left(plan: Plan, cells: list[Cell], results: Path, arguments: argparse.Namespace) -> Left:
    """What the command is to make."""
    unfinished = cells_left(plan, cells, results, arguments.anew)
    reports = reports_left(plan, cells, unfinished, results, arguments.anew) if arguments.report else []
    return Left(unfinished, reports)


def fit_forecast(arguments: argparse.Namespace) -> None:
    """What ``--forecast`` does."""
    plan, _ = make_plan(arguments)
    results = arguments.results or Path("docs/results/study") / plan.table.name
    shipped = arguments.results is None and own_table(plan)
    file = forecast_file(plan.table.name) if shipped else plan.runs / "forecast.json"
    forecast = make_forecast(plan, read_cells(results, plan.table.name), read_reports(results, plan.table.name))
    write_json(file, forecast)
    draw(forecast, file.with_suffix(".png"))
    print(f"{in_words(forecast)}\n\nforecast: {file} and {file.with_suffix('.png').name}")
    if shipped:
        put_into()


def own_table(plan: Plan) -> bool:
    """Whether the study is one of those whose tables stand in docs/study.md."""
    return (TABLES / f"{plan.table.name}.yaml").is_file()


def visible_devices() -> list[str]:
    """GPUs as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


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


def keep_report(plan: Plan, cell: Cell, results: Path, device: torch.device) -> None:
    """Write the JSON file of a cell's report."""
    stages, file = plan.report_stages(cell), report_file(results, cell)
    write_report(file, plan.table.name, cell, stages, spent_on(stages[-1].run_dir)["report"], device)
    note(f"reported on {cell.name}: {file}")


if __name__ == "__main__":
    main()
