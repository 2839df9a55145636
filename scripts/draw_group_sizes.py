"""The curves of ``compare_group_sizes.sh``: held-out loss against the step, and what is left at the end.

python scripts/draw_group_sizes.py runs/group_sizes docs/group_sizes.png --sizes 1 16 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def held_out_losses(run: Path) -> dict[int, float]:
    """Loss on held-out rows by step, of the averaged weights."""
    rows = [json.loads(line) for line in (run / "flowhead" / "log.jsonl").read_text().splitlines()]
    return {row["step"]: row["held_out_loss"] for row in rows if "held_out_loss" in row}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--sizes", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", required=True)
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(6, 3.2), dpi=150)
    for number, size in enumerate(arguments.sizes):
        curves = [held_out_losses(arguments.runs / f"size{size}_seed{seed}") for seed in arguments.seeds]
        for seed, curve in zip(arguments.seeds, curves):
            label = (
                {"1": "a time per feature"}.get(size, f"a time for {size} features")
                if seed == arguments.seeds[0]
                else None
            )
            style = {"color": f"C{number}", "linestyle": "-" if number == 0 else "--"}
            axes.plot(list(curve), list(curve.values()), label=label, **style)
        last = [curve[max(curve)] for curve in curves]
        spread = f" +- {statistics.stdev(last):.4f}" if len(last) > 1 else ""
        each = ", ".join(f"{value:.4f}" for value in last)
        print(
            f"group_size {size}: held-out loss {statistics.fmean(last):.4f}{spread} ({each}) after {max(curves[0])} steps"
        )
    axes.set(xlabel="step", ylabel="flow-matching loss, held-out digits")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(arguments.picture)


if __name__ == "__main__":
    main()
