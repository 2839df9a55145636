"""The latents' way down L_align, as a GIF."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

from flowprior.run.files import write_bytes
from toy_examples.figures import RED, STYLE, Drawn, heat_map, scatter_data, spread_records

FRAMES = 40
FRAME_MILLISECONDS = 90
LAST_MILLISECONDS = 1500


def draw_animation(one: Drawn, file: Path) -> None:
    """Latents over the NLL, frame by frame."""
    latents = one.latents
    records = sorted(set(spread_records(len(latents.steps), min(FRAMES, len(latents.steps)))))
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(3.6, 3.7), layout="constrained")
        heat_map(axis, one.maps, one.maps.nll, one.nll_shown)
        scatter_data(axis, one.maps.data, s=2, alpha=0.4)
        moving = axis.scatter([], [], marker="^", s=9, c=RED, linewidths=0, zorder=3)
        frames = []
        for record in records:
            moving.set_offsets(latents.points[record].numpy())
            axis.set_title(f"{one.title}: step {latents.steps[record]:,}, NLL {one.nll_along[record]:.2f}")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=90)
            frames.append(Image.open(buffer).convert("RGB").quantize(64))
        plt.close(figure)
    buffer = io.BytesIO()
    durations = [FRAME_MILLISECONDS] * (len(frames) - 1) + [LAST_MILLISECONDS]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    write_bytes(file, buffer.getvalue())
