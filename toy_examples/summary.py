"""The printed table of a toy run: one column per distribution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

ROWS = (
    ("Pearson of L_align and NLL, along the optimisation", "along_optimisation.pearson"),
    ("  Spearman", "along_optimisation.spearman"),
    ("Pearson over the grid", "over_grid.pearson"),
    ("  Spearman", "over_grid.spearman"),
    ("NLL (nats) of latents before", "nll.latents_before"),
    ("  latents after", "nll.latents_after"),
    ("  data", "nll.data"),
    ("L_align per channel of latents before", "alignment.latents_before"),
    ("  latents after", "alignment.latents_after"),
    ("  data", "alignment.data"),
    ("sliced Wasserstein to data, latents", "sliced_wasserstein.latents"),
    ("  prior samples", "sliced_wasserstein.prior_samples"),
    ("  fresh data (floor)", "sliced_wasserstein.fresh_data"),
    ("squared MMD to data, latents", "squared_mmd.latents"),
    ("  prior samples", "squared_mmd.prior_samples"),
    ("  fresh data (floor)", "squared_mmd.fresh_data"),
    ("share of modes covered, latents", "modes.latents.covered"),
    ("  prior samples", "modes.prior_samples.covered"),
    ("largest mode's share, latents", "modes.latents.largest"),
    ("  prior samples", "modes.prior_samples.largest"),
    ("  data", "modes.data.largest"),
    ("relative error of the velocity", "velocity_error"),
    ("error of log p (nats) on data", "log_prob_error.data"),
    ("  on latents", "log_prob_error.latents"),
    ("smallest lambda of Proposition 1", "bound.smallest_lambda"),
    ("  mean gap there (nats)", "bound.mean_gap"),
    ("error of the kernel estimate (nats) on data", "kde.mean_absolute_error"),
    ("seconds", "seconds.total"),
)


COMPARED = (
    ("NLL - data's", lambda one: one["nll"]["latents_after"] - one["nll"]["data"]),
    ("SW", lambda one: one["sliced_wasserstein"]["latents"]),
    ("of floor", lambda one: one["sliced_wasserstein"]["latents"] / one["sliced_wasserstein"]["fresh_data"]),
    ("MMD^2", lambda one: one["squared_mmd"]["latents"]),
    ("floor", lambda one: one["squared_mmd"]["fresh_data"]),
    ("largest mode", lambda one: one["modes"]["latents"]["largest"] if "modes" in one else None),
    ("of data", lambda one: one["modes"]["data"]["largest"] if "modes" in one else None),
    ("seconds", lambda one: one["seconds"]["latents"]),
)


def summary(metrics: Iterable[dict[str, Any]]) -> str:
    """A text table of what ``metrics.json`` holds for each distribution; rows that none of them has are left out."""
    metrics = list(metrics)
    lines = [("", *(one["distribution"] for one in metrics))]
    for label, path in ROWS:
        values = [_at(one, path) for one in metrics]
        if any(value is not None for value in values):
            digits = 0 if path.startswith("seconds") else 3
            lines.append((label, *("-" if value is None else f"{value:.{digits}f}" for value in values)))
    return _aligned(lines)


def comparison(metrics: Iterable[dict[str, Any]]) -> str:
    """A text table with a line for each run: how the latents of its objective lie to the data, and the seconds of stage 2."""
    lines = [("distribution, objective", *(label for label, _ in COMPARED))]
    for one in metrics:
        values = [value(one) for _, value in COMPARED]
        cells = ("-" if value is None else f"{value:.{1 if value >= 10 else 4}f}" for value in values)
        lines.append((f"{one['distribution']}, {one['objective']}", *cells))
    return _aligned(lines)


def _aligned(lines: list[tuple[str, ...]]) -> str:
    label_width, *widths = (max(map(len, column)) for column in zip(*lines))
    return "\n".join(
        "  ".join([line[0].ljust(label_width), *(cell.rjust(width) for cell, width in zip(line[1:], widths))])
        for line in lines
    )


def _at(values: dict[str, Any], path: str) -> float | None:
    for key in path.split("."):
        values = (values or {}).get(key)  # type: ignore[assignment]
    return values  # type: ignore[return-value]
