"""The paper's panels (Figure 5) and snapshots (Figure 6), of one distribution and of all on a sheet."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flowprior.run.files import write_bytes
from toy_examples.latent_stage import AlignedLatents
from toy_examples.maps import PlaneMaps

STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8, "axes.linewidth": 0.6}
COLOURS = "YlGnBu"  # light where points lie, so that both blue and red stand out
BLUE, RED = "#1f4fd8", "#d62728"
SHOWN_POINTS = 1000
SNAPSHOTS = 6


@dataclass
class Drawn:
    """What the figures of one distribution show.

    Attributes:
        title: its name.
        maps: NLL and L_align over the plane, and data.
        latents: the way of the latents.
        nll_along: ``(S,)``, their mean NLL at the recorded steps.
        nll_shown: NLL is cut at this level.
    """

    title: str
    maps: PlaneMaps
    latents: AlignedLatents
    nll_along: Tensor
    nll_shown: float


def draw_panels(drawn: list[Drawn], file: Path, dpi: int) -> None:
    """(a) latents and data over the NLL, (b) L_align with data, (c) both against the step; one row per distribution."""
    with plt.rc_context(STYLE):
        size = (11, 3.3 * len(drawn))
        widths = {"width_ratios": [1, 1, 1.05]}
        figure, rows = plt.subplots(
            len(drawn), 3, figsize=size, layout="constrained", gridspec_kw=widths, squeeze=False
        )
        figure.get_layout_engine().set(wspace=0.06)
        for axes, one in zip(rows, drawn):
            _panels(axes, one)
        save(figure, file, dpi)


def draw_snapshots(drawn: list[Drawn], file: Path, dpi: int) -> None:
    """The latents at steps spread over the optimisation, over the NLL; one row per distribution."""
    with plt.rc_context(STYLE):
        size = (2.1 * SNAPSHOTS, 2.35 * len(drawn))
        figure, rows = plt.subplots(len(drawn), SNAPSHOTS, figsize=size, layout="constrained", squeeze=False)
        for axes, one in zip(rows, drawn):
            for axis, record in zip(axes, spread_records(len(one.latents.steps), SNAPSHOTS)):
                heat_map(axis, one.maps, one.maps.nll, one.nll_shown)
                _latents(axis, one.latents.points[record], size=3)
                axis.set(xticks=[], yticks=[], title=f"step {one.latents.steps[record]:,}")
            axes[0].set_ylabel(one.title)
        save(figure, file, dpi)


def draw_objectives(drawn: dict[str, list[Drawn]], file: Path, dpi: int) -> None:
    """Where the latents of each objective end, over the NLL and data; a row per objective, a column per distribution."""
    with plt.rc_context(STYLE):
        columns = len(next(iter(drawn.values())))
        size = (2.3 * columns + 0.3, 2.6 * len(drawn))
        figure, rows = plt.subplots(len(drawn), columns, figsize=size, layout="constrained", squeeze=False)
        for axes, (objective, runs) in zip(rows, drawn.items()):
            for axis, one in zip(axes, runs):
                heat_map(axis, one.maps, one.maps.nll, one.nll_shown)
                scatter_data(axis, one.maps.data, s=2)
                _latents(axis, one.latents.end, size=4)
                axis.set(xticks=[], yticks=[], title=f"{one.title}: NLL {one.nll_along[-1]:.2f}")
            axes[0].set_ylabel(objective)
        save(figure, file, dpi)


def spread_records(count: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` records, closer together where the latents move most: at the start."""
    return [round((count - 1) * (k / (wanted - 1)) ** 2) for k in range(wanted)]


def save(figure: Figure, file: Path, dpi: int) -> None:
    """Write ``figure`` as a PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    plt.close(figure)
    write_bytes(file, buffer.getvalue())


def heat_map(axis: Axes, maps: PlaneMaps, values: Tensor, top: float, label: str = "") -> Any:
    """``values`` on the grid, cut at ``top``; with a colour bar where there is a label."""
    half = maps.half_width
    image = axis.imshow(
        values.clamp(max=top),
        origin="lower",
        extent=(-half, half, -half, half),
        cmap=COLOURS,
        interpolation="bicubic",
        aspect="equal",
    )
    axis.set(xlim=(-half, half), ylim=(-half, half))
    if label:
        axis.figure.colorbar(image, ax=axis, label=label, extend="max", fraction=0.046, pad=0.03)
    return image


def scatter_data(axis: Axes, data: Tensor, **style: Any) -> None:
    """Blue dots."""
    style = {"s": 4, "c": BLUE, "linewidths": 0, "alpha": 0.7, "label": "data", "zorder": 2, **style}
    axis.scatter(*data[:SHOWN_POINTS].T, **style)


def _latents(axis: Axes, points: Tensor, size: float = 9) -> Any:
    return axis.scatter(*points.T, marker="^", s=size, c=RED, linewidths=0, alpha=0.8, label="latents", zorder=3)


def _panels(axes: list[Axes], one: Drawn) -> None:
    maps = one.maps
    heat_map(axes[0], maps, maps.nll, one.nll_shown, "NLL (nats)")
    scatter_data(axes[0], maps.data)
    _latents(axes[0], one.latents.end)
    axes[0].set_title(f"(a) {one.title}: latents over NLL")
    top = maps.alignment.quantile(0.9).item()
    heat_map(axes[1], maps, maps.alignment, top, r"$\mathcal{L}_{align}$ per channel")
    scatter_data(axes[1], maps.data)
    axes[1].set_title(r"(b) $\mathcal{L}_{align}$ of the frozen flow")
    for axis in axes[:2]:
        axis.legend(loc="upper right", markerscale=2, handletextpad=0.1, borderpad=0.3, framealpha=0.9)
    steps = one.latents.steps
    (alignment,) = axes[2].plot(steps, one.latents.alignment, color=BLUE, label=r"$\mathcal{L}_{align}$")
    axes[2].set(xlabel="step", title=r"(c) $\mathcal{L}_{align}$ and NLL of the latents")
    axes[2].set_ylabel(r"$\mathcal{L}_{align}$ per channel", color=BLUE)
    right = axes[2].twinx()
    (nll,) = right.plot(steps, one.nll_along, color=RED, linestyle="--", label="NLL")
    right.set_ylabel("NLL (nats)", color=RED)
    axes[2].legend(handles=[alignment, nll], loc="upper right")
