"""What the latent report foretells of a generator's FID: correlations of its figures, alone, and a model of a few, kept for the report to read."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import pearsonr, spearmanr

from flowprior.errors import UserError
from flowprior.notes import note
from latent_report.config import PROTOCOL_VERSION
from latent_report.figures import FIGURES
from latent_report.forecast import FORECASTS, FORMAT_VERSION, Refused, distance, protocol_of
from study.fit import choose, least_squares, left_out_predictions
from study.forecast_page import fitted_on
from study.kept import cell_of
from study.page import current_cells, figure_of_guidance
from study.plan import Plan
from study.reports import Pair, with_reports
from study.stages import GENERATORS
from study.table import StudyTable

REFERENCE = "none"  # the row that ratios are to
LEAST_ROWS, LEAST_AUTOENCODERS = 8, 20  # beside the reference
LEAST_CORRELATED = 5


class Known(NamedTuple):
    """An autoencoder whose generator's FID and whose report are known, beside the reference of its length and seed."""

    row: str
    family: str  # the row that this one is a variant of, or itself
    length: str
    log_ratio: float  # of FIDs without guidance
    away: dict[str, float]  # of each figure, as latent_report.forecast.distance


def forecast_file(study: str) -> Path:
    """Where the report finds the forecast of a study that comes with the project."""
    return FORECASTS / f"{study}.json"


def make_forecast(plan: Plan, cells: list[dict[str, Any]], reports: list[dict[str, Any]]) -> dict[str, Any]:
    """The forecast as its JSON file holds it, of the finished cells and reports that the plan would make again; the others are named.

    Raises:
        UserError: for no generator there are enough autoencoders with both.
    """
    both = with_reports(plan, current_cells(plan.table, cells), reports)
    models, too_few = {}, []
    for name in GENERATORS:
        known = known_of(plan.table, both, name)
        rows = {one.family for one in known}
        if len(rows) < LEAST_ROWS or len(known) < LEAST_AUTOENCODERS:
            too_few.append(f"{len(known)} autoencoders of {len(rows)} rows for {name}")
            continue
        models[name] = fit(known, reference_length(plan))
    if not models:
        raise UserError(
            f"a forecast takes {LEAST_AUTOENCODERS} autoencoders of {LEAST_ROWS} rows beside '{REFERENCE}', with a report and a generator's FID, "
            f"and there are {', '.join(too_few)}: run the study with --report, and more of its rows"
        )
    for told in too_few:
        note(f"no forecast for a generator, since there are {told}, and it takes {LEAST_AUTOENCODERS} of {LEAST_ROWS}")
    [(_, stage)] = [(cell, plan.report_stages(cell_of(cell))[-1]) for cell, _ in both[:1]]
    return {
        "format": FORMAT_VERSION,
        "study": plan.table.name,
        "images": both[0][0]["data"],
        "protocol_version": PROTOCOL_VERSION,
        "protocol": protocol_of(stage.config()),
        "weights": {network: weights for _, report in both for network, weights in report["weights"].items()},
        "cells": fitted_on(both),
        "reference": reference_of(both, reference_length(plan)),
        "generators": models,
    }


def reference_length(plan: Plan) -> str:
    """The length whose autoencoders a forecast is for: the one that selects, or the first."""
    return next((name for name, length in plan.table.lengths.items() if length.selects), next(iter(plan.table.lengths)))


def known_of(table: StudyTable, both: list[Pair], generator: str) -> list[Known]:
    """All autoencoders but the reference's whose length and seed have the reference, too."""
    fid, made = figure_of_guidance(generator, "1", "fid"), []
    references = {(c["length"], c["seed"]): (c, r) for c, r in both if c["row"] == REFERENCE and fid(c)}
    for cell, report in both:
        reference = references.get((cell["length"], cell["seed"]))
        if reference is None or cell["row"] == REFERENCE or not fid(cell):
            continue
        away = figures_away(values(report), values(reference[1]))
        row, family = cell["row"], table.rows[cell["row"]].variant_of or cell["row"]
        made.append(Known(row, family, cell["length"], math.log(fid(cell) / fid(reference[0])), away))
    return made


def values(report: dict[str, Any]) -> dict[str, float]:
    """Figures that are there, but for those that need a prior of their own."""
    of_tokenizers = (name for name, figure in FIGURES.items() if figure.group != "alignment")
    there = {name: (report["figures"].get(name) or {}).get("value") for name in of_tokenizers}
    return {name: value for name, value in there.items() if value is not None}


def figures_away(own: dict[str, float], reference: dict[str, float]) -> dict[str, float]:
    """How far each figure that both have is from the reference's."""
    made = {}
    for name in own.keys() & reference.keys():
        try:
            made[name] = distance(name, own[name], reference[name])
        except Refused:  # no logarithm
            continue
    return made


def fit(known: list[Known], length: str) -> dict[str, Any]:
    """One generator's part of the forecast."""
    names = [name for name in FIGURES if all(name in one.away for one in known)]
    x = np.array([[one.away[name] for name in names] for one in known])
    varying = np.flatnonzero(x.std(axis=0) > 1e-9 * np.abs(x).max(axis=0, initial=1e-300))
    names, x = [names[column] for column in varying], x[:, varying]
    y, groups = (
        np.array([one.log_ratio for one in known]),
        np.unique([one.family for one in known], return_inverse=True)[1],
    )
    chosen = choose(x, y, groups)
    columns = list(chosen.columns)
    scales = np.sqrt(np.mean(x[:, columns] ** 2, axis=0))
    coefficients = least_squares(x[:, columns] / scales, y)
    left_out = left_out_predictions(x, y, groups)
    return {
        "figures": {
            names[column]: {
                "coefficient": float(coefficient),
                "scale": float(scale),
                "least": min(0.0, float(x[:, column].min())),
                "most": max(0.0, float(x[:, column].max())),
            }
            for column, coefficient, scale in zip(columns, coefficients, scales)
        },
        "error": float(np.sqrt(np.mean((left_out - y) ** 2))),
        "error_of_the_chosen": chosen.error,
        "error_of_none": float(np.sqrt(np.mean(y**2))),
        "autoencoders": len(known),
        "rows": rows_of(known, left_out, length),
        "correlations": correlations(known),
    }


def rows_of(known: list[Known], left_out: np.ndarray, length: str) -> dict[str, Any]:
    """Geometric means over each row's autoencoders of the ratio at the reference's length, and, over all lengths, of what was measured and
    of what was predicted with the row and its variants left out. A variant has no ratio, since it takes no part in ranks."""
    made: dict[str, Any] = {REFERENCE: {"family": REFERENCE, "ratio": 1.0}}
    for row in dict.fromkeys(one.row for one in known):
        own = [(one, predicted) for one, predicted in zip(known, left_out) if one.row == row]
        at_length = [one.log_ratio for one, _ in own if (one.length, one.family) == (length, row)]
        made[row] = {
            "family": own[0][0].family,
            "ratio": math.exp(statistics.fmean(at_length)) if at_length else None,
            "autoencoders": len(own),
            "measured": math.exp(statistics.fmean(one.log_ratio for one, _ in own)),
            "left_out": math.exp(statistics.fmean(float(predicted) for _, predicted in own)),
        }
    return made


def correlations(known: list[Known]) -> dict[str, Any]:
    """Of the log FID ratio with each figure's distance from the reference, over the autoencoders that have it."""
    made = {}
    for name in FIGURES:
        pairs = [(one.away[name], one.log_ratio) for one in known if name in one.away]
        if len(pairs) >= LEAST_CORRELATED and len({x for x, _ in pairs}) > 1:
            x, y = zip(*pairs)
            ranks, line = spearmanr(x, y).statistic, pearsonr(x, y).statistic
            made[name] = {"spearman": float(ranks), "pearson": float(line), "autoencoders": len(pairs)}
    return made


def reference_of(both: list[Pair], length: str) -> dict[str, Any]:
    """The reference's figures, as means over its seeds at the length."""
    reports = [values(r) for cell, r in both if (cell["row"], cell["length"]) == (REFERENCE, length)]
    if not reports:
        raise UserError(f"a forecast is for autoencoders of the length {length}, and '{REFERENCE}' has no report there")
    shared = [name for name in FIGURES if all(name in report for report in reports)]
    means = {name: statistics.fmean(report[name] for report in reports) for name in shared}
    return {"row": REFERENCE, "length": length, "autoencoders": len(reports), "figures": means}
