"""The tables of docs/study.md, from the JSON files of finished cells, between marks that a test reads them back from."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from study.kept import read_cells
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


def seconds(stage: str) -> Callable[[Record], float | None]:
    return lambda cell: cell.get("spent", {}).get(stage, {}).get("cpu_seconds")


def tflop(stage: str) -> Callable[[Record], float | None]:
    return lambda cell: cell.get("tflop", {}).get(stage)


AUTOENCODER = (
    Column("PSNR (dB)", figure("autoencoder", "psnr"), 1),
    Column("SSIM", figure("autoencoder", "ssim")),
    Column("rFID", figure("autoencoder", "rfid")),
    Column("rFID under noise of 0.2", figure("autoencoder", "rfid_noise_0.2")),
    Column("std of the latents", figure("autoencoder", "latent_std"), 2),
    Column("correlation with kNN distance", figure("autoencoder", "alignment_knn_correlation"), 2),
    Column("CPU seconds", seconds("autoencoder"), 0),
    Column("TFLOP", tflop("autoencoder"), 1),
)


def generator_columns(name: str, scales: dict[str, str]) -> tuple[Column, ...]:
    """Without guidance, and with it at the scale that each row's selection seed has chosen."""

    def at(figure: str, guided: bool) -> Callable[[Record], float | None]:
        def value(cell: Record) -> float | None:
            scale = scales.get(cell["row"]) if guided else "1"
            return cell["figures"].get(name, {}).get("by_guidance", {}).get(scale, {}).get(figure)

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
        Column("CPU seconds", seconds(name), 0),
        Column("TFLOP", tflop(name), 1),
    )


def chosen_scales(table: StudyTable, cells: list[Record], name: str) -> dict[str, str]:
    """The guidance scale above 1 with the lowest FID on the selection seed, by row."""
    chosen = {}
    for cell in cells:
        sets = cell["figures"].get(name, {}).get("by_guidance", {})
        fids = {scale: figures["fid"] for scale, figures in sets.items() if float(scale) > 1}
        if cell["seed"] == table.selection_seed and fids and None not in fids.values():
            chosen[cell["row"]] = min(fids, key=fids.get)  # type: ignore[arg-type]
    return chosen


def markdown(table: StudyTable, cells: list[Record]) -> str:
    """The tables of one study: autoencoders, then each generator, at every length, then the weights that were tried."""
    parts = []
    for length in table.lengths:
        reported = [c for c in cells if c["length"] == length and c["seed"] != table.selection_seed]
        reported = [cell for cell in reported if cell["row"] in table.rows]
        if reported:
            steps = reported[0]["made_from"]["autoencoder"]["train"]["steps"]
            where = f"{table.name}, {length} ({steps:,} steps)"
            parts.append(f"**{where}: autoencoders**\n\n{grid(table, reported, AUTOENCODER)}")
            for name in GENERATORS:
                if of_name := [cell for cell in reported if name in cell["figures"]]:
                    columns = generator_columns(name, chosen_scales(table, cells, name))
                    parts.append(f"**{where}: {SHOWN[name]}**\n\n{grid(table, of_name, columns)}")
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
    """Mean, and the standard deviation where there are several seeds with the figure."""
    scale = 100 if column.percent else 1
    values = [scale * value for cell in cells if (value := column.value(cell)) is not None]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{column.digits}f}" if len(set(values)) > 1 else ""
    return f"{statistics.fmean(values):.{column.digits}f}{spread}{' %' * column.percent}"


def weights_tried(table: StudyTable, cells: list[Record]) -> str:
    """PSNR and FID of every weight of the rows that try some; empty where none is finished."""
    by_row = {cell["row"]: cell for cell in cells if cell["seed"] == table.selection_seed}
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
        if (results / file.stem).is_dir() and (cells := read_cells(results / file.stem)):
            made.append(markdown(read_table(file), cells))
    return "\n\n".join([START, *(made or ["No cell is finished yet."]), END])


def put_into(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Replace what stands between the marks."""
    before, rest = page.read_text().split(START)
    page.write_text(before + page_tables(results) + rest.split(END)[1])
