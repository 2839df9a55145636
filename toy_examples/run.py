"""``python toy_examples/run.py --distribution spiral``: both stages, the three panels, and a table.

Writes ``runs/toy/spiral/{flow,latents,panels.png,metrics.json}``. The same command again reuses what is complete and resumes
what is not.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    ROOT = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(ROOT))  # run as a file, Python looks beside it instead
    if importlib.util.find_spec("torch") is None and "FLOWPRIOR_ENVIRONMENT" not in os.environ:
        # A bare Python: make the project's environment, as every script does, and start over in it.
        words = f'source "{ROOT}/scripts/common.sh"; ensure_environment; exec "$PYTHON" "$@"'
        os.environ["FLOWPRIOR_ENVIRONMENT"] = "made"
        os.execvp("bash", ["bash", "-c", words, "run.py", str(Path(__file__).resolve()), *sys.argv[1:]])

import torch

from flowprior.errors import UserError, entry_point
from flowprior.training.config import apply_overrides, build_config, find_preset, list_options, read_yaml
from flowprior.training.distributed import best_device
from flowprior.training.files import write_json
from toy_examples.config import ToyConfig
from toy_examples.distributions import DISTRIBUTIONS, distribution
from toy_examples.figures import draw_panels
from toy_examples.maps import draw_maps, figures_of_merit
from toy_examples.stages import align_latents, forget, train_flow

PRESETS = Path(__file__).parent / "configs"
FLAGS = {
    "steps": ("flow.train.steps", "steps of the flow's training"),
    "width": ("flow.width", "width of the velocity network"),
    "depth": ("flow.depth", "blocks of the velocity network"),
    "batch": ("flow.train.global_batch", "samples per step of the flow's training"),
    "lr": ("flow.optim.lr", "learning rate of the flow"),
    "latents": ("latents.train.global_batch", "number of latents"),
    "latent-steps": ("latents.train.steps", "steps of the latents"),
    "latent-lr": ("latents.optim.lr", "learning rate of the latents"),
}
COLUMNS = (
    "distribution",
    "r steps",
    "r grid",
    "rank steps",
    "rank grid",
    "NLL before",
    "after",
    "data",
    "L before",
    "after",
    "data",
    "seconds",
)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; what argparse objects to becomes a :class:`UserError`."""
    fields = "\n".join(f"  {name}  {meaning}" for name, _, meaning in list_options(ToyConfig))
    parser = argparse.ArgumentParser(
        prog="toy_examples/run.py",
        description="The paper's toy experiments.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"every option:\n{fields}",
    )
    parser.add_argument("--distribution", default="spiral", help=f"one of {', '.join(DISTRIBUTIONS)}, or all [spiral]")
    parser.add_argument(
        "--preset", default="default", help="default, paper (exactly the paper's setting), or a .yaml file [default]"
    )
    parser.add_argument("--out", help="folder of the runs [runs/toy; runs/toy_<preset> for another preset]")
    parser.add_argument("--seed", help="of weights, data, latents and noise")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="[auto: the GPU if there is one]"
    )
    parser.add_argument(
        "--redo", choices=("flow", "latents"), help="delete this stage's run, and what stands on it, and do it again"
    )
    for flag, (dotted, meaning) in FLAGS.items():
        parser.add_argument(f"--{flag}", help=f"{meaning} ({dotted})")
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="any option by its dotted name")

    def refuse(message: str) -> None:
        raise UserError(f"{message} (--help lists every option)")

    parser.error = refuse  # type: ignore[assignment]
    return parser.parse_intermixed_args(argv)


def config_of(arguments: argparse.Namespace) -> ToyConfig:
    """The preset with the command line's options over it."""
    given = [
        f"{dotted}={getattr(arguments, flag.replace('-', '_'))}"
        for flag, (dotted, _) in FLAGS.items()
        if getattr(arguments, flag.replace("-", "_")) is not None
    ]
    if arguments.seed is not None:
        given += [f"{stage}.train.seed={arguments.seed}" for stage in ("flow", "latents")]
    return build_config(
        ToyConfig, apply_overrides(read_yaml(find_preset(arguments.preset, PRESETS)), given + arguments.overrides)
    )


def run_one(name: str, config: ToyConfig, out: Path, device: torch.device, redo: str | None = None) -> dict[str, Any]:
    """Both stages, the panels and the figures of one distribution; returns what ``metrics.json`` holds."""
    target, run_dir = distribution(name), out / name
    if redo:
        forget(run_dir, redo)
    prior, flow_seconds = train_flow(target, config.flow, run_dir, device)
    latents = align_latents(prior, target, config.latents, run_dir, device)
    start = time.perf_counter()
    maps = draw_maps(prior, target, config.map, device)
    metrics = {"distribution": name, **figures_of_merit(prior, target, maps, latents, config.map, device)}
    try:
        draw_panels(maps, latents, config.map.nll_clip, name.replace("_", " "), run_dir / "panels.png")
        parts = {"flow": flow_seconds, "latents": latents.seconds, "figures": round(time.perf_counter() - start, 2)}
        metrics["seconds"] = {**parts, "total": round(sum(parts.values()), 2)}
        write_json(run_dir / "metrics.json", metrics)
    except OSError as error:
        raise UserError(f"cannot write into {run_dir}: {error.strerror}") from error
    return metrics


def table(rows: list[dict[str, Any]]) -> str:
    """``r``: Pearson, ``rank``: Spearman correlation of L_align and NLL; NLL in nats, L = L_align per channel."""
    lines = [COLUMNS]
    for row in rows:
        steps, grid, nll, alignment = row["along_optimisation"], row["over_grid"], row["nll"], row["alignment"]
        numbers = [
            steps["pearson"],
            grid["pearson"],
            steps["spearman"],
            grid["spearman"],
            *nll.values(),
            *alignment.values(),
        ]
        lines.append(
            (
                row["distribution"],
                *("-" if n is None else f"{n:.3f}" for n in numbers),
                f"{row['seconds']['total']:.0f}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


@entry_point
def main() -> None:
    arguments = parse(sys.argv[1:])
    names = list(DISTRIBUTIONS) if arguments.distribution == "all" else [arguments.distribution]
    for name in names:
        distribution(name)
    config = config_of(arguments)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: write --device cpu, or leave it out")
    device = best_device() if arguments.device == "auto" else torch.device(arguments.device)
    preset = Path(arguments.preset).stem
    out = Path(arguments.out or ("runs/toy" if preset == "default" else f"runs/toy_{preset}"))
    rows = []
    for name in names:
        print(f"{name}: {out / name}", flush=True)
        rows.append(run_one(name, config, out, device, arguments.redo))
    print(table(rows))


if __name__ == "__main__":
    main()
