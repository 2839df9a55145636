"""A forecast as a person sees it: tables in Markdown, and a picture."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

from flowprior.run.files import write_bytes
from latent_report.figures import FIGURES
from latent_report.forecast import SHOWN
from study.kept import cell_of
from study.reports import Pair

DRAWN_FIGURES = 12


def fitted_on(both: list[Pair]) -> dict[str, dict[str, str]]:
    """By cell, fingerprints of its autoencoder and of its generators."""
    return {
        cell_of(cell).name: {stage: of["fingerprint"] for stage, of in cell["figures"].items() if "fingerprint" in of}
        for cell, _ in both
    }


def out_of_date(forecast: dict[str, Any], both: list[Pair]) -> list[str]:
    """Why a forecast is not of the cells with a report that there are now, in words; none where it is."""
    before, now, told = forecast["cells"], fitted_on(both), []
    trained = [name for name in before.keys() & now.keys() if before[name] != now[name]]
    for names, what in (
        (trained, "trained again"),
        (now.keys() - before.keys(), "new"),
        (before.keys() - now.keys(), "gone"),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            told.append(f"{what}: {min(names)}{more}")
    return told


def in_words(forecast: dict[str, Any]) -> str:
    """What was chosen and how well it does, every figure's correlations, and every row as predicted without it."""
    models, parts = forecast["generators"], []
    for name, model in models.items():
        rows = len({row["family"] for row in model["rows"].values()}) - 1
        variants = sum(row["family"] != name for name, row in model["rows"].items())
        counted = f"{rows} rows" + f" and {variants} variants of them" * bool(variants)
        error, without = (math.exp(model[key]) for key in ("error", "error_of_none"))
        chosen = "; ".join(
            f"{FIGURES[figure].label} ({part['coefficient']:+.2f})" for figure, part in model["figures"].items()
        )
        parts.append(
            f"**{forecast['study']}: {SHOWN[name]}'s FID, as a ratio to that of `{forecast['reference']['row']}`, by the latent report**, over "
            f"{model['autoencoders']} autoencoders of {counted}. Chosen, with coefficients for a usual distance from `none`: "
            f"{chosen or 'nothing'}. Rows that are left out are missed by a factor of {error:.2f}, and by {without:.2f} if one expects no difference."
        )
    return "\n\n".join([*parts, correlation_table(models), row_table(models)])


def correlation_table(models: dict[str, Any]) -> str:
    """The figures of the report, those first that go along with a FID most."""
    heads = [f"{SHOWN[name]}, {kind}" for name in models for kind in ("Spearman", "Pearson")]
    lines = [["figure alone", *heads]]
    for figure in by_strength(models):
        found = [model["correlations"].get(figure) for model in models.values()]
        cells = [f"{one[kind]:+.2f}" if one else "-" for one in found for kind in ("spearman", "pearson")]
        lines.append([FIGURES[figure].label, *cells])
    return _table(lines)


def by_strength(models: dict[str, Any]) -> list[str]:
    """Figures by their largest rank correlation with any generator's FID."""
    strength: dict[str, float] = {}
    for model in models.values():
        for figure, found in model["correlations"].items():
            strength[figure] = max(strength.get(figure, 0.0), abs(found["spearman"]))
    return sorted(strength, key=strength.get, reverse=True)  # type: ignore[arg-type]


def row_table(models: dict[str, Any]) -> str:
    """Every row's ratio as measured, and as predicted by what was chosen and fitted without it."""
    lines = [["row", *(f"{SHOWN[name]}, {what}" for name in models for what in ("measured", "predicted without it"))]]
    for row in dict.fromkeys(row for model in models.values() for row in model["rows"]):
        found = [model["rows"].get(row, {}) for model in models.values()]
        cells = [f"{one[key]:.2f}" if key in one else "-" for one in found for key in ("measured", "left_out")]
        if set(cells) != {"-"}:
            lines.append([row, *cells])
    return _table(lines)


def draw(forecast: dict[str, Any], file: Path) -> None:
    """A line of two plots for every generator: the strongest correlations, and rows as predicted without them against measured."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    models = forecast["generators"]
    figure, axes = plt.subplots(len(models), 2, figsize=(11, 4.2 * len(models)), squeeze=False, layout="constrained")
    for (name, model), (left, right) in zip(models.items(), axes):
        strongest = by_strength({name: model})[:DRAWN_FIGURES][::-1]
        chosen = ["#c53030" if one in model["figures"] else "#2b6cb0" for one in strongest]
        left.barh(
            [FIGURES[one].label for one in strongest],
            [model["correlations"][one]["spearman"] for one in strongest],
            color=chosen,
        )
        left.axvline(0, color="#4a5568", linewidth=0.8)
        left.set(xlim=(-1, 1), xlabel=f"Spearman correlation with {SHOWN[name]}'s FID ratio (red: in the forecast)")
        rows = {row: found for row, found in model["rows"].items() if "left_out" in found}
        ends = [found[key] for found in rows.values() for key in ("measured", "left_out")]
        right.plot([min(ends), max(ends)], [min(ends), max(ends)], color="#a0aec0", linewidth=1)
        right.scatter(
            [one["measured"] for one in rows.values()], [one["left_out"] for one in rows.values()], color="#2b6cb0"
        )
        for row, one in rows.items():
            right.annotate(
                row, (one["measured"], one["left_out"]), fontsize=7, xytext=(4, 3), textcoords="offset points"
            )
        right.set(
            xscale="log",
            yscale="log",
            xlabel=f"{SHOWN[name]}'s FID ratio, measured",
            ylabel="predicted without the row",
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    write_bytes(file, buffer.getvalue())


def _table(lines: list[list[str]]) -> str:
    rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
