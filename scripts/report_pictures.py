"""The pictures of a run's report: the flow prior, alignment, latents, losses, and one of the whole run."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.image as image  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from scripts.report_reading import (  # noqa: E402
    GENERATORS,
    classes_text,
    has,
    measured_generators,
    read,
    read_rows,
    trained_stages,
    two_scales,
)

NO_LOSSES = ("step", "grad_norm", "lr", "steps_per_second", "waiting_for_data")  # of a row of the log
BLUE, RED, GREEN, GREY = "#2b6cb0", "#c53030", "#2f855a", "#718096"


def figure_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, bbox_inches="tight")
    return buffer.getvalue()


def prior_points(run: Path) -> dict[str, Any]:
    """Equally many target features and prior samples on the two principal axes of the target, each ``(n, 2)``."""
    target = load_file(run / "flowhead" / "target_samples.safetensors")["samples"]
    samples = load_file(run / "flowhead" / "prior_samples.safetensors")["samples"]
    target = target[np.random.default_rng(0).permutation(len(target))[: len(samples)]]
    mean = target.mean(0)
    _, _, axes = np.linalg.svd(target - mean, full_matrices=False)
    return {"target features": (target - mean) @ axes[:2].T, "prior samples": (samples - mean) @ axes[:2].T}


def draw_prior(axes: Any, run: Path) -> None:
    """Target features and prior samples side by side, in the same window."""
    points = prior_points(run)
    low, high = points["target features"].min(0), points["target features"].max(0)
    for axis, (label, plane), colour in zip(axes, points.items(), (BLUE, RED)):
        axis.scatter(plane[:, 0], plane[:, 1], s=2, alpha=0.4, color=colour, linewidths=0)
        axis.set(
            xlabel="first principal axis",
            ylabel="second principal axis",
            title=label,
            xlim=(low[0], high[0]),
            ylim=(low[1], high[1]),
        )


def draw_prior_together(axis: Any, run: Path) -> None:
    """Target features and prior samples in one panel, drawn in random order so that neither hides the other."""
    points = prior_points(run)
    plane, colours = np.concatenate(list(points.values())), np.repeat([BLUE, RED], [len(p) for p in points.values()])
    order = np.random.default_rng(0).permutation(len(plane))
    axis.scatter(plane[order, 0], plane[order, 1], s=2, alpha=0.4, c=colours[order], linewidths=0)
    for label, colour in zip(points, (BLUE, RED)):
        axis.scatter([], [], color=colour, label=label)
    axis.set(xlabel="first principal axis", ylabel="second principal axis", title="flow prior")
    axis.legend(frameon=False, loc="best")


def draw_losses(axes: Any, run: Path) -> None:
    """The loss of every stage against the step, in its terms."""
    titles = {"flowhead": "flow prior: flow matching", "ae": "autoencoder"} | GENERATORS
    for axis, stage in zip(axes, trained_stages(run)):
        rows = read_rows(run / stage / "log.jsonl", "loss")
        every = dict.fromkeys(name for row in rows for name in row)  # a term may begin late and end early
        names = [name for name in every if name not in NO_LOSSES and "/" not in name]
        lowest = min((row[name] for row in rows for name in names if name in row), default=1)
        for name, (style, colour) in zip(names, itertools.product(("-", "--", ":"), (BLUE, RED, GREEN, GREY))):
            of_name = [row for row in rows if name in row]
            values = [row[name] for row in of_name]
            axis.plot([row["step"] for row in of_name], values, style, color=colour, label=name, linewidth=1)
        # The adversary's term and a likelihood may lie below 0.
        axis.set(yscale="log" if lowest > 0 else "linear", xlabel="step", title=titles[stage])
        axis.legend(frameon=False)


def draw_alignment(axes: Any, run: Path) -> None:
    """Alignment loss and kNN distance over training, and against each other (Fig. 4 of the paper)."""
    rows = read_rows(run / "ae" / "log.jsonl", "alignment", "knn_log_distance")
    steps, alignment, distance = ([row[name] for row in rows] for name in ("step", "alignment", "knn_log_distance"))
    axes[0].plot(steps, alignment, color=BLUE, label="alignment loss")
    axes[0].set(xlabel="step", title="over training")
    axes[0].set_ylabel("alignment loss", color=BLUE)
    other = axes[0].twinx()
    other.plot(steps, distance, color=RED, linestyle="--", label="mean log kNN distance")
    other.set_ylabel("mean log kNN distance", color=RED)
    lines = axes[0].get_lines() + other.get_lines()
    axes[0].legend(lines, [line.get_label() for line in lines], frameon=False)
    axes[1].scatter(alignment, distance, c=steps, cmap="viridis", s=18)
    correlation = np.corrcoef(alignment, distance)[0, 1] if len(rows) > 2 else float("nan")
    axes[1].set(xlabel="alignment loss", ylabel="mean log kNN distance", title=f"Pearson correlation {correlation:.3f}")
    axes[1].yaxis.tick_right()  # on the left its label would stand against that of the other panel's second scale
    axes[1].yaxis.set_label_position("right")


def draw_latents(axes: Any, run: Path) -> None:
    """Latent statistics over training."""
    rows = read_rows(run / "ae" / "log.jsonl", "latent_std")
    steps = [row["step"] for row in rows]
    for name, label, colour in (("latent_std", "standard deviation", BLUE), ("latent_mean", "mean", GREY)):
        axes[0].plot(steps, [row[name] for row in rows], label=label, color=colour)
    axes[0].set(xlabel="step", title="latents")
    axes[0].legend(frameon=False)
    axes[1].plot(steps, [row["latent_effective_rank"] for row in rows], color=GREEN)
    axes[1].set(xlabel="step", title="effective rank of the latents")


def draw_cache(axes: Any, run: Path) -> None:
    """The channels' standard deviations in the cache."""
    statistics = read(run / "latents" / "manifest.json")["statistics"]
    axes[0].bar(range(len(statistics["channel_std"])), statistics["channel_std"], color=BLUE)
    axes[0].set(xlabel="channel", title=f"cached std per channel, scale {statistics['scale']:.3f}")


def curves(run: Path, draw: Any, panels: int) -> bytes:
    figure, axes = plt.subplots(1, panels, figsize=(4.2 * panels, 3.4), layout="constrained", squeeze=False)
    draw(axes[0], run)
    png = figure_png(figure)
    plt.close(figure)
    return png


def last_picture(folder: Path, pattern: str) -> bytes:
    return sorted(folder.glob(pattern))[-1].read_bytes()


def overview(run: Path, path: Path) -> None:
    """One picture of the whole run, for a README."""
    stages = [stage for stage in ("flowhead", "ae") if has(run, stage)]
    widths = [{"flowhead": 1.1, "ae": 1.2}[stage] for stage in stages] + [1]
    figure, [axes] = plt.subplots(
        1, len(widths), figsize=(4 * sum(widths), 4.4), layout="constrained", width_ratios=widths, squeeze=False
    )
    if "flowhead" in stages:
        draw_prior_together(axes[0], run)
    if "ae" in stages:
        reconstructions = io.BytesIO(last_picture(run / "ae" / "pictures", "reconstructions_*.png"))
        axes[-2].imshow(image.imread(reconstructions))
        axes[-2].set_title("inputs (rows 1, 3) and their reconstructions (rows 2, 4)")
    name = measured_generators(run)[0]
    cfg = two_scales(run, name)[-1]
    axes[-1].imshow(image.imread(run / name / "samples" / f"cfg_{cfg}.png"))
    axes[-1].set_title(f"generated{classes_text(run, name)} (cfg {cfg})")
    for axis in axes[1:] if "flowhead" in stages else axes:
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)
