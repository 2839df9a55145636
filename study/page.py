"""The tables of docs/study.md, from the JSON files of finished cells, between marks that a test reads them back from."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.rounding import rounded_with_error
from flowprior.run.files import write_bytes
from latent_report.forecast import kept_forecasts
from study.forecast_page import in_words, out_of_date
from study.kept import cell_of, differences, read_cells
from study.plan import Plan
from study.reports import read_reports, with_reports
from study.stages import GENERATORS
from study.table import TABLES, StudyTable, read_table

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "study.md", ROOT / "docs" / "results" / "study"
START, END = "<!-- study tables: bash scripts/study.sh --docs -->", "<!-- end of study tables -->"
SHOWN = {"sit": "SiT", "mar": "MAR"}
Record = dict[str, Any]


class Column(NamedTuple):
    """A figure of a cell, None where it has none, and the digits behind the point; ``percent`` shows shares."""

    title: str
    value: Callable[[Record], float | None]
    digits: int = 3
    percent: bool = False


def figure(stage: str, name: str) -> Callable[[Record], float | None]:
    return lambda cell: cell["figures"].get(stage, {}).get(name)


def figure_of_guidance(generator: str, scale: str, name: str) -> Callable[[Record], float | None]:
    """A figure of the images that a generator drew at a guidance scale."""
    return lambda cell: cell["figures"].get(generator, {}).get("by_guidance", {}).get(scale, {}).get(name)


def tflop(stage: str) -> Callable[[Record], float | None]:
    return lambda cell: cell.get("tflop", {}).get(stage)


def cost_columns(stage: str, cells: Sequence[Record]) -> tuple[Column, ...]:
    """What a stage took: seconds where all cells ran on one device, and the arithmetic of its training."""
    arithmetic = Column("TFLOP", tflop(stage), 1)
    if len({cell["device"] for cell in cells}) != 1:
        return (arithmetic,)
    title, clock = ("CPU seconds", "cpu_seconds") if cells[0]["device_type"] == "cpu" else ("seconds", "seconds")
    return Column(title, lambda cell: cell["spent"].get(stage, {}).get(clock), 0), arithmetic


AUTOENCODER = (
    Column("PSNR (dB)", figure("autoencoder", "psnr"), 1),
    Column("SSIM", figure("autoencoder", "ssim")),
    Column("rFID", figure("autoencoder", "rfid")),
    Column("rFID under noise of 0.2", figure("autoencoder", "rfid_noise_0.2")),
    Column("std of the latents", figure("autoencoder", "latent_std"), 2),
    Column("correlation with kNN distance", figure("autoencoder", "alignment_knn_correlation"), 2),
)


def generator_columns(name: str, scales: dict[str, str]) -> tuple[Column, ...]:
    """Without guidance, and with it at the scale that each row's selection seed has chosen."""

    def at(figure: str, guided: bool) -> Callable[[Record], float | None]:
        def value(cell: Record) -> float | None:
            scale = scales.get(cell["row"], "") if guided else "1"
            return figure_of_guidance(name, scale, figure)(cell)

        return value

    return (
        Column("FID", at("fid", False)),
        Column("IS", at("inception_score", False), 2),
        Column("precision", at("precision", False), 2),
        Column("recall", at("recall", False), 2),
        Column("recognised", at("recognised", False), 1, True),
        Column("guidance", lambda cell: float(scales[cell["row"]]) if cell["row"] in scales else None, 2),
        Column("FID with it", at("fid", True)),
        Column("recognised with it", at("recognised", True), 1, True),
    )


def chosen_scales(table: StudyTable, cells: list[Record], name: str) -> dict[str, str]:
    """The guidance scale above 1 with the lowest FID on the selection seed, by row."""
    chosen = {}
    for cell in cells:
        sets = cell["figures"].get(name, {}).get("by_guidance", {})
        fids = {scale: figures["fid"] for scale, figures in sets.items() if float(scale) > 1}
        if selects(table, cell) and fids and None not in fids.values():
            chosen[cell["row"]] = min(fids, key=fids.get)  # type: ignore[arg-type]
    return chosen


def selects(table: StudyTable, cell: Record) -> bool:
    """Whether guidance scales and weights are chosen by the cell."""
    return cell["seed"] == table.selection_seed and table.lengths[cell["length"]].selects


def current_cells(table: StudyTable, cells: list[Record]) -> list[Record]:
    """Those of ``cells`` that the table would make again; each of the others is named.

    Raises:
        UserError: these were not all made from the same images.
    """
    plan, current = Plan(table, Path()), []
    for kept in cells:
        cell = cell_of(kept)
        there = cell.row in table.rows and cell.length in table.lengths
        told = differences(kept, plan.stages_of(cell)) if there else ["the table has no such row or length"]
        if told:
            note(f"{cell.name} was made from other options than the table's, and is not shown ({'; '.join(told[:3])})")
        else:
            current.append(kept)
    one_of_each = {kept["data"]: cell_of(kept).name for kept in current}
    if len(one_of_each) > 1:
        raise UserError(
            f"the cells {' and '.join(list(one_of_each.values())[:2])} of the study {table.name} were made from different images: move those of "
            "one of the data sets elsewhere"
        )
    return current


def markdown(table: StudyTable, cells: list[Record]) -> str:
    """The tables of one study: autoencoders, then each generator, at every length, then the weights that were tried."""
    parts, cells = [], current_cells(table, cells)
    for length in table.lengths:
        reported = [c for c in cells if c["length"] == length and c["seed"] != table.selection_seed]
        if reported:
            steps = reported[0]["made_from"]["autoencoder"]["train"]["steps"]
            devices = " and ".join(sorted({cell["device"] for cell in reported}))
            where = f"{table.name}, {length}: autoencoders of {steps:,} steps, on {devices}"
            parts.append(
                f"**{where}**\n\n{grid(table, reported, (*AUTOENCODER, *cost_columns('autoencoder', reported)))}"
            )
            for name in GENERATORS:
                if of_name := [cell for cell in reported if name in cell["figures"]]:
                    columns = generator_columns(name, chosen_scales(table, cells, name))
                    columns += cost_columns(name, of_name)
                    parts.append(f"**{SHOWN[name]} on the latents of {where}**\n\n{grid(table, of_name, columns)}")
    if weights := weights_tried(table, cells):
        parts.append(f"**{table.name}: weights, on the selection seed, FID by SiT without guidance**\n\n{weights}")
    return "\n\n".join(parts)


def grid(table: StudyTable, cells: list[Record], columns: Sequence[Column]) -> str:
    """A line for every row of the table, mean and spread over its seeds; columns that nobody has a figure for are left out."""
    columns = [column for column in columns if any(column.value(cell) is not None for cell in cells)]
    lines = [("", "seeds", *(column.title for column in columns))]
    for name, row in table.rows.items():
        if of_row := [cell for cell in cells if cell["row"] == name]:
            entries = (entry(column, of_row) for column in columns)
            lines.append((row.shown or name, str(len(of_row)), *entries))
    return _table(lines)


def entry(column: Column, cells: list[Record]) -> str:
    """Mean, and the standard deviation where there are several seeds with the figure; how many have it, where not all do."""
    scale = 100 if column.percent else 1
    values = [scale * value for cell in cells if (value := column.value(cell)) is not None]
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(set(values)) > 1 else None
    shown = " ± ".join(filter(None, rounded_with_error(statistics.fmean(values), deviation, f".{column.digits}f")))
    share = f" ({len(values)} of {len(cells)})" if len(values) < len(cells) else ""
    return f"{shown}{' %' * column.percent}{share}"


def weights_tried(table: StudyTable, cells: list[Record]) -> str:
    """PSNR and FID of every weight of the rows that try some; empty where none is finished."""
    by_row = {cell["row"]: cell for cell in cells if selects(table, cell)}
    fid, psnr = generator_columns("sit", {})[0], AUTOENCODER[0]
    lines = [("", "weight", "PSNR (dB)", "FID")]
    for name, row in table.rows.items():
        for weight in row.weights:
            cell = by_row.get(f"{name}_{weight:g}" if f"{name}_{weight:g}" in table.rows else name)
            if cell is not None:
                lines.append((row.shown or name, f"{weight:g}", entry(psnr, [cell]), entry(fid, [cell])))
    return _table(lines) if len(lines) > 1 else ""


def _table(lines: list[tuple[str, ...]]) -> str:
    rows = [lines[0], ("---",) * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page_tables(results: Path = RESULTS, tables: Path = TABLES) -> str:
    """The tables of all studies that have a finished cell, with the marks around them."""
    made = []
    for file in sorted(tables.glob("*.yaml")):
        if (results / file.stem).is_dir() and (cells := read_cells(results / file.stem, file.stem)):
            table = read_table(file)
            cells = current_cells(table, cells)  # what is not shown is named once
            made.append(markdown(table, cells))
            for forecast in kept_forecasts():
                if forecast["study"] == file.stem:
                    made.append(in_words(forecast))
                    say_if_out_of_date(forecast, table, cells, read_reports(results / file.stem, file.stem))
    return "\n\n".join([START, *(list(filter(None, made)) or ["No cell is finished yet."]), END])


def say_if_out_of_date(forecast: Record, table: StudyTable, cells: list[Record], reports: list[Record]) -> None:
    """A note where a forecast was not fitted on the cells that have a report now."""
    if told := out_of_date(forecast, with_reports(Plan(table, Path()), cells, reports)):
        note(
            f"the forecast of {table.name} was fitted on other cells than there are now ({'; '.join(told)}): fit it again by "
            f"`bash scripts/study.sh --data {table.name} --forecast`"
        )


def put_into(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Replace what stands between the marks; a :class:`UserError` where they do not stand there once each."""
    text = page.read_text()
    if (text.count(START), text.count(END)) != (1, 1) or text.index(START) > text.index(END):
        raise UserError(f"{page} has not one '{START}' and one '{END}' behind it: restore them")
    before, behind = text[: text.index(START)], text[text.index(END) + len(END) :]
    write_bytes(page, (before + page_tables(results) + behind).encode())
