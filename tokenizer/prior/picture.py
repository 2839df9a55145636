"""The picture of a flow prior: its samples beside the target's features."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch import Tensor

from flowprior.run.files import write_bytes

BLUE, RED = "#1f4fd8", "#d62728"
SHOWN_POINTS, SHOWN_QUANTILES, SHOWN_CHANNELS = 4000, 99, 64


def draw_prior(features: Tensor, samples: Tensor, name: str, title: str, file: Path) -> None:
    """Both on the features' two principal axes, and every channel's quantiles of one against the other's.

    Args:
        features, samples: ``(n, C)`` and ``(m, C)``, on the CPU.
        name: of the features.
        title: of the picture.
        file: a PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    planes = principal_planes(features, samples)
    low, high = planes[0].amin(0), planes[0].amax(0)
    margin = 0.05 * (high - low).clamp(min=1e-6)
    window = {"xlim": (low[0] - margin[0], high[0] + margin[0]), "ylim": (low[1] - margin[1], high[1] + margin[1])}
    for axis, plane, colour, label in zip((left, middle), planes, (BLUE, RED), (name, "prior samples")):
        axis.scatter(*plane[:SHOWN_POINTS].T.numpy(), s=2, alpha=0.4, color=colour, linewidths=0)
        axis.set(title=label, xlabel="first principal axis", ylabel="second principal axis", **window)
    levels = torch.linspace(0.01, 0.99, SHOWN_QUANTILES)
    wanted, found = (
        torch.quantile(points.float(), levels, dim=0)[:, :SHOWN_CHANNELS] for points in (features, samples)
    )
    right.plot(wanted.numpy(), found.numpy(), color=RED, alpha=0.5, linewidth=0.8)
    ends = [wanted.min().item(), wanted.max().item()]
    right.plot(ends, ends, color="black", linewidth=0.8, linestyle="--")
    right.set(title="quantiles, a line per channel", xlabel=name, ylabel="prior samples")
    figure.suptitle(title, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(file, buffer.getvalue())


def principal_planes(features: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Both point sets on the two leading principal axes of ``features``, each ``(n, 2)``; one channel leaves the second axis at 0."""
    mean = features.double().mean(0)
    _, axes = torch.linalg.eigh((features.double() - mean).T @ (features.double() - mean))  # ascending
    axes = axes.flip(-1)[:, :2]
    planes = [(points.double() - mean) @ axes for points in (features, samples)]
    return tuple(torch.nn.functional.pad(plane, (0, 2 - plane.shape[1])).float() for plane in planes)
