"""The latent report of a finished cell's autoencoder, as one JSON file beside the cell's: its figures, and what they were made from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.files import read_json, write_json
from flowprior.run.machine import device_name
from latent_report.config import PROTOCOL_VERSION
from latent_report.forecast import other_weights
from study.kept import (
    FORMAT_VERSION,
    REPORT_SUFFIX,
    cell_file,
    cell_of,
    made_otherwise,
    read_cell,
    read_kept,
    result_options,
    versions,
)
from study.plan import Cell, Plan, PlannedStage

Pair = tuple[dict[str, Any], dict[str, Any]]  # a finished cell and its report


def report_file(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}{REPORT_SUFFIX}"


def read_report(file: Path, study: str) -> dict[str, Any]:
    """A :class:`UserError` for a file that is damaged, no report's, of another study than ``study``, or called as another cell's."""
    return read_kept(file, study, "report of a cell", {"autoencoder", "data", "weights", "made_from"}, REPORT_SUFFIX)


def read_reports(folder: Path, study: str) -> list[dict[str, Any]]:
    """All reports of a study in a folder, by name."""
    return [read_report(file, study) for file in sorted(folder.glob(f"*{REPORT_SUFFIX}"))]


def write_report(
    file: Path, study: str, cell: Cell, stages: list[PlannedStage], spent: dict[str, float], device: torch.device
) -> None:
    """Gather the figures of a cell's report from its run folder and write its file, whole or not at all.

    Args:
        file: to write.
        study: the table's name.
        cell: whose autoencoder it is of.
        stages: as :meth:`Plan.report_stages` has them.
        spent: ``seconds`` of the clock and ``cpu_seconds``.
        device: that it ran on.
    """
    autoencoder, stage = stages[-2], stages[-1]
    [entry] = read_json(stage.run_dir / stage.stage.folder / "report.json", "report")["tokenizers"]
    write_json(
        file,
        {
            "format": FORMAT_VERSION,
            "study": study,
            **dataclasses.asdict(cell),
            "protocol_version": PROTOCOL_VERSION,
            "autoencoder": trained_fingerprint(autoencoder),
            "figures": entry["figures"],
            "left_out": entry["left_out"],
            "spent": spent,
            "data": entry["about"]["images"],
            "weights": entry["weights"],
            "device": device_name(device),
            "device_type": device.type,
            "versions": versions(),
            "made_from": {each.name: result_options(each.config()) for each in stages},
        },
    )


def trained_fingerprint(stage: PlannedStage) -> str:
    """Of the autoencoder in a run folder; empty where there is none."""
    file = stage.run_dir / stage.stage.folder / "result.json"
    return str(read_json(file, "result")["fingerprint"]) if file.is_file() else ""


def report_differences(kept: dict[str, Any], plan: Plan, cell: Cell, finished: dict[str, Any] | None) -> list[str]:
    """Why a report is not the one that the plan would make of the finished cell, in words; none where it is."""
    if kept.get("protocol_version") != PROTOCOL_VERSION:
        return [f"figures of version {kept.get('protocol_version')}, now {PROTOCOL_VERSION}"]
    told = made_otherwise(kept["made_from"], plan.report_stages(cell))
    if told or finished is None:
        return told
    told = ["other images than the finished cell's"] * (kept["data"] != finished["data"])
    if finished["figures"]["autoencoder"]["fingerprint"] != kept["autoencoder"]:
        told.append("another autoencoder than the finished cell's")
    return told


def with_reports(plan: Plan, cells: list[dict[str, Any]], reports: list[dict[str, Any]]) -> list[Pair]:
    """Cells beside their reports; a report of something else than its cell is named.

    Raises:
        UserError: two of the reports look with networks of different weights.
    """
    by_cell, made, seen = {cell_of(report): report for report in reports}, [], {}
    for cell in cells:
        if (report := by_cell.get(cell_of(cell))) is None:
            continue
        if told := report_differences(report, plan, cell_of(cell), cell):
            note(
                f"the report of {cell_of(cell).name} is left out, since it is of something else ({'; '.join(told[:3])})"
            )
            continue
        for network, weights in report["weights"].items():
            before = seen.setdefault(network, report)
            if others := other_weights({network: weights}, before["weights"]):
                raise UserError(
                    f"the reports of {cell_of(before).name} and {cell_of(cell).name} do not compare, since {others[0]} differ: delete those of "
                    f"one kind, and make them again by `bash scripts/study.sh --data {plan.table.name} --report` (a table of your own by its "
                    "file)"
                )
        made.append((cell, report))
    return made


def reports_left(plan: Plan, cells: list[Cell], unfinished: list[Cell], results: Path, anew: bool) -> list[Cell]:
    """The cells whose report is to be made: those that have none or are about to be trained, and with ``anew`` those whose report is of
    something else.

    Cells that were finished elsewhere and whose run folder is not here are named in a note.

    Args:
        plan, cells: of the study.
        unfinished: those of the cells that are about to be trained.
        results: folder of the finished cells.
        anew: whether reports of something else are made again.

    Raises:
        UserError: without ``anew``, where there are such reports.
    """
    left, stale, gone = [], [], []
    for cell in cells:
        file, finished = report_file(results, cell), None
        if cell not in unfinished:
            finished = read_cell(cell_file(results, cell), plan.table.name)
        if file.is_file():
            told = report_differences(read_report(file, plan.table.name), plan, cell, finished)
            if told:
                stale.append(f"{file} ({'; '.join(told[:3])})")
            elif finished is not None:
                continue
        if finished is None or _is_here(plan, cell, finished):
            left.append(cell)
        else:
            gone.append(cell.name)
    if stale and not anew:
        more = f", and {len(stale) - 1} more" if len(stale) > 1 else ""
        raise UserError(
            f"{stale[0]}{more} is no report that this study would make: write --anew to put it aside and make it anew"
        )
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        note(f"{gone[0]}{more} cannot be reported on, since the autoencoder is not in {plan.runs}")
    return left


def _is_here(plan: Plan, cell: Cell, finished: dict[str, Any]) -> bool:
    """Whether the run folder holds the autoencoder that the finished cell's figures are of."""
    return trained_fingerprint(plan.report_stages(cell)[-2]) == finished["figures"]["autoencoder"]["fingerprint"]
