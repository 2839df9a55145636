"""What the frozen flow does: its vector field, the ways from noise to data, and its samples over the data."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from flowprior.flow.path import path_sample
from flowprior.flow.solver import integrate
from flowprior.training.randomness import stream_seed
from toy_examples.config import MapConfig
from toy_examples.figures import RED, SHOWN_POINTS, STYLE, save, scatter_data
from toy_examples.flow_stage import CHANNELS, FrozenFlow

FIELD_TIMES = (0.05, 0.3, 0.6, 0.8, 0.95)
ARROWS = 21
WAYS, WAY_STEPS = 120, 40
GREY = "#9a9a9a"


@torch.no_grad()
def draw_field(flow: FrozenFlow, data: Tensor, title: str, file: Path, config: MapConfig, device: torch.device) -> None:
    """Arrows of ``v(x, t)`` at several t, over the points that the path passes through then."""
    half_width = config.half_width
    line = torch.linspace(-half_width, half_width, ARROWS)
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(-1, CHANNELS)
    noise = torch.randn(SHOWN_POINTS, CHANNELS, generator=_generator("field"))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(FIELD_TIMES), figsize=(2.5 * len(FIELD_TIMES), 2.9), layout="constrained")
        for axis, t in zip(axes, FIELD_TIMES):
            passed = path_sample(noise, data[:SHOWN_POINTS], torch.tensor(t)).x_t
            arrows = flow.velocity(grid.to(device), torch.tensor(t, device=device)).cpu()
            scatter_data(axis, passed, s=3, alpha=0.35, label="path")
            # directions: lengths differ by orders of magnitude where the flow was never trained
            arrows = arrows / arrows.norm(dim=-1, keepdim=True).clamp(min=1e-6)
            axis.quiver(*grid.T, *arrows.T, scale=28, width=0.005, color="black", zorder=3)
            limits = (-half_width, half_width)
            axis.set(xlim=limits, ylim=limits, aspect="equal", xticks=[], yticks=[], title=f"t = {t:g}")
        axes[0].set_ylabel(f"{title}: direction of v(x, t)")
        save(figure, file, config.dpi)


@torch.no_grad()
def draw_flow(
    flow: FrozenFlow, data: Tensor, samples: Tensor, title: str, file: Path, config: MapConfig, device: torch.device
) -> None:
    """Ways from noise to data, and ``samples`` of the flow over ``data``."""
    noise = torch.randn(WAYS, CHANNELS, generator=_generator("ways"))
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3.7), layout="constrained")
        ways = ways_of(flow, noise.to(device)).cpu()
        left.plot(*ways.movedim(-1, 0).numpy(), color=GREY, linewidth=0.6, zorder=1)
        left.scatter(*noise.T, s=7, c="black", linewidths=0, zorder=2, label="noise, t = 0")
        left.scatter(*ways[-1].T, s=9, c=RED, linewidths=0, zorder=3, label="t = 1")
        left.set_title(f"{title}: ways of the flow")
        scatter_data(right, data, s=5, alpha=0.5)
        right.scatter(*samples[:SHOWN_POINTS].T, s=5, c=RED, linewidths=0, alpha=0.5, label="prior samples", zorder=3)
        right.set_title("prior samples over data")
        for axis in (left, right):
            limits = (-1.2 * config.half_width, 1.2 * config.half_width)
            axis.set(xlim=limits, ylim=limits, aspect="equal")
            axis.legend(loc="upper right", markerscale=2, handletextpad=0.1, borderpad=0.3, framealpha=0.9)
        save(figure, file, config.dpi)


def ways_of(flow: FrozenFlow, noise: Tensor) -> Tensor:
    """``(steps + 1, N, 2)``: where each point of ``noise (N, 2)`` is on its way to t = 1."""
    ways, x = [noise], noise
    for step in range(WAY_STEPS):
        x = integrate(flow.velocity, x, 1, "heun", step / WAY_STEPS, (step + 1) / WAY_STEPS)
        ways.append(x)
    return torch.stack(ways)


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(0, "figure", name))
