"""The paper's three panels of one distribution."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from flowprior.training.files import write_bytes
from toy_examples.maps import PlaneMaps
from toy_examples.stages import AlignedLatents

STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8, "axes.linewidth": 0.6}
COLOURS = "YlGnBu"  # light where points lie, so that both blue and red stand out
BLUE, RED = "#1f4fd8", "#d62728"
SHOWN_POINTS = 1000


def draw_panels(maps: PlaneMaps, latents: AlignedLatents, nll_clip: float, title: str, file: Path) -> None:
    """(a) latents and data over the NLL, (b) L_align with data, (c) both against the step."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, 3, figsize=(11, 3.3), layout="constrained", gridspec_kw={"width_ratios": [1, 1, 1.05]}
        )
        figure.get_layout_engine().set(wspace=0.06)
        _heat_map(axes[0], maps, maps.nll, nll_clip, "NLL (nats)")
        _data(axes[0], maps)
        end = latents.end.cpu()
        axes[0].scatter(*end.T, marker="^", s=9, c=RED, linewidths=0, alpha=0.8, label="latents", zorder=3)
        axes[0].set_title(f"(a) {title}: latents over NLL")
        _heat_map(
            axes[1], maps, maps.alignment, maps.alignment.quantile(0.95).item(), r"$\mathcal{L}_{align}$ per channel"
        )
        _data(axes[1], maps)
        axes[1].set_title(r"(b) $\mathcal{L}_{align}$ of the frozen flow")
        for axis in axes[:2]:
            axis.legend(loc="upper right", markerscale=2, handletextpad=0.1, borderpad=0.3, framealpha=0.9)
        _curves(axes[2], latents)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200)
        plt.close(figure)
    write_bytes(file, buffer.getvalue())


def _heat_map(axis: Axes, maps: PlaneMaps, values, top: float, label: str) -> None:
    left, right, bottom, upper = maps.region
    image = axis.imshow(
        values.clamp(max=top),
        origin="lower",
        extent=(left, right, bottom, upper),
        cmap=COLOURS,
        interpolation="bicubic",
        aspect="equal",
    )
    axis.set(xlim=(left, right), ylim=(bottom, upper))
    axis.figure.colorbar(image, ax=axis, label=label, extend="max", fraction=0.046, pad=0.03)


def _data(axis: Axes, maps: PlaneMaps) -> None:
    axis.scatter(*maps.data[:SHOWN_POINTS].T, s=4, c=BLUE, linewidths=0, alpha=0.7, label="data", zorder=2)


def _curves(axis: Axes, latents: AlignedLatents) -> None:
    steps = [row["step"] for row in latents.history]
    (alignment,) = axis.plot(
        steps, [row["alignment"] for row in latents.history], color=BLUE, label=r"$\mathcal{L}_{align}$"
    )
    axis.set(xlabel="step", title=r"(c) $\mathcal{L}_{align}$ and true NLL of the latents")
    axis.set_ylabel(r"$\mathcal{L}_{align}$ per channel", color=BLUE)
    right = axis.twinx()
    (nll,) = right.plot(steps, [row["nll"] for row in latents.history], color=RED, linestyle="--", label="NLL")
    right.set_ylabel("NLL (nats)", color=RED)
    axis.legend(handles=[alignment, nll], loc="upper right")
