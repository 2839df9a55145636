"""``python toy_examples/run.py --distribution spiral``: both stages, the figures, and a table.

Writes ``runs/toy/spiral/{flow,latents,*.png,optimisation.gif,metrics.json}``; with ``--distribution all`` also the paper's
Figures 5 and 6 as one sheet each. What ``--objective distribution`` or ``both`` makes on the same flow lies in a folder of that name
there; ``--objective all`` runs all three, and compares them. The same command again reuses what is complete and resumes what is not.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

if __package__ in (None, ""):
    ROOT = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(ROOT))  # run as a file, Python looks beside it instead
    if importlib.util.find_spec("torch") is None and "FLOWPRIOR_ENVIRONMENT" not in os.environ:
        # A bare Python: make the project's environment, as every script does, and start over in it.
        words = f'source "{ROOT}/scripts/common.sh"; ensure_environment; exec "$PYTHON" "$@"'
        os.environ["FLOWPRIOR_ENVIRONMENT"] = "made"
        os.execvp("bash", ["bash", "-c", words, "run.py", str(Path(__file__).resolve()), *sys.argv[1:]])
    if not os.environ.get("OMP_WAIT_POLICY"):
        # As scripts/common.sh has it, before PyTorch is imported: on a busy machine, threads that spin while they wait make it crawl.
        os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "1000")}

import torch
from torch import Tensor

from flowprior.distributed import World, best_device
from flowprior.errors import UserError, entry_point
from flowprior.flow.prior import Alignment
from flowprior.heap import keep_freed_memory
from flowprior.run.config import apply_overrides, build_config
from flowprior.run.files import write_json
from flowprior.run.lock import sole_writer
from flowprior.run.presets import Parser, find_preset, read_preset
from toy_examples.animation import draw_animation
from toy_examples.config import MapConfig, ToyConfig
from toy_examples.density import negative_log_likelihood
from toy_examples.distributions import DISTRIBUTIONS, GaussianMixture, distribution
from toy_examples.figures import Drawn, draw_objectives, draw_panels, draw_snapshots
from toy_examples.flow_figures import draw_field, draw_flow
from toy_examples.flow_stage import FrozenFlow, exact_flow, trained_flow
from toy_examples.latent_stage import align_latents
from toy_examples.maps import draw_maps
from toy_examples.measures import (
    correlations,
    distances,
    kde_error,
    levels,
    likelihoods,
    mode_shares,
    prior_samples,
    rounded,
    velocity_error,
)
from toy_examples.summary import comparison, summary

OBJECTIVES = get_args(Alignment)
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
    "start-std": ("latents.start_std", "standard deviation of the latents at the start"),
    "velocity": ("velocity", "trained, or exact: the closed form in the network's place"),
    "density": ("density.kind", "exact, or kde: the paper's kernel estimate"),
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; what argparse objects to becomes a :class:`UserError`."""
    parser = Parser(
        prog="toy_examples/run.py",
        description="The paper's toy experiments.",
        options_of=ToyConfig,
        before=" before the preset is applied",
    )
    parser.add_argument("--distribution", default="spiral", help=f"one of {', '.join(DISTRIBUTIONS)}, or all [spiral]")
    parser.add_argument(
        "--objective",
        help=f"of the latents, {', '.join(OBJECTIVES)}, or all [as in the preset: likelihood] (latents.objective)",
    )
    parser.add_argument(
        "--preset",
        default="default",
        help="default, objectives (the three objectives compared), paper (the paper's network, training and latents), or a .yaml file [default]",
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
        ToyConfig,
        apply_overrides(read_preset(find_preset(arguments.preset, PRESETS), PRESETS), given + arguments.overrides),
    )


def forget(run_dir: Path, stage: str, objectives: list[str]) -> None:
    """Delete what ``stage`` left, and what stands on it: every objective's latents on the flow."""
    if stage == "flow":
        shutil.rmtree(run_dir / "flow", ignore_errors=True)
    for objective in OBJECTIVES if stage == "flow" else objectives:
        shutil.rmtree(folder_of(objective, run_dir) / "latents", ignore_errors=True)


def folder_of(objective: str, run_dir: Path) -> Path:
    """Where latents, figures and numbers of an objective lie: beside the flow that all share, or in a folder there."""
    return run_dir if objective == "likelihood" else run_dir / objective


def run_one(name: str, config: ToyConfig, flow_dir: Path, device: torch.device) -> tuple[dict[str, Any], Drawn]:
    """Both stages, the figures and the numbers of one distribution; returns what ``metrics.json`` holds, and what was drawn."""
    target, title = distribution(name), name.replace("_", " ")
    flow = (
        exact_flow(target, name) if config.velocity == "exact" else trained_flow(target, config.flow, flow_dir, device)
    )
    run_dir = folder_of(config.latents.objective, flow_dir)
    latents = align_latents(flow, config.latents, run_dir, device)
    start = time.perf_counter()
    nll = negative_log_likelihood(target, config.density)
    maps = draw_maps(flow, target, nll, config.map, device)
    samples = prior_samples(flow, len(latents.end), device)
    clouds = {"latents": latents.end, "prior_samples": samples}
    nll_along = torch.stack([nll(points).mean() for points in latents.points])
    metrics = {
        "distribution": name,
        "objective": config.latents.objective,
        "velocity": config.velocity,
        "density": config.density.kind,
        **correlations(latents.alignment, nll_along, maps, config.map),
        **levels(flow, latents, maps.data, nll, config.map.pairs, device),
        **distances(target, maps.data, clouds),
        **likelihoods(flow, target, {"data": maps.data, "latents": latents.end}, config.map.pairs, device),
        "velocity_error": velocity_error(flow, target, device),
        "kde": kde_error(target, config.density, maps.data),
    }
    if isinstance(target, GaussianMixture):
        metrics["modes"] = {kind: mode_shares(target, points) for kind, points in {**clouds, "data": maps.data}.items()}
    measured = time.perf_counter()
    drawn = Drawn(title, maps, latents, nll_along, config.map.nll_shown)
    draw(drawn, flow, samples, config.map, run_dir, device)
    parts = {
        "flow": flow.seconds,
        "latents": latents.seconds,
        "measures": measured - start,
        "figures": time.perf_counter() - measured,
    }
    metrics = rounded({**metrics, "seconds": {**parts, "total": sum(parts.values())}})
    write_json(run_dir / "metrics.json", metrics)
    return metrics, drawn


def draw(
    drawn: Drawn, flow: FrozenFlow, samples: Tensor, config: MapConfig, run_dir: Path, device: torch.device
) -> None:
    """Every picture of one distribution, into its folder."""
    data, title = drawn.maps.data, drawn.title
    draw_panels([drawn], run_dir / "panels.png", config.dpi)
    draw_snapshots([drawn], run_dir / "snapshots.png", config.dpi)
    draw_field(flow, data, title, run_dir / "field.png", config, device)
    draw_flow(flow, data, samples, title, run_dir / "flow.png", config, device)
    draw_animation(drawn, run_dir / "optimisation.gif")


@entry_point
def main() -> None:
    arguments = parse(sys.argv[1:])
    names = list(DISTRIBUTIONS) if arguments.distribution == "all" else [arguments.distribution]
    for name in names:
        distribution(name)
    config = config_of(arguments)
    if arguments.objective not in (None, "all", *OBJECTIVES):
        raise UserError(f"there is no objective '{arguments.objective}': choose one of {', '.join(OBJECTIVES)}, or all")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: write --device cpu, or leave it out")
    device = best_device() if arguments.device == "auto" else torch.device(arguments.device)
    if device.type == "cpu":
        keep_freed_memory()
    preset = Path(arguments.preset).stem
    out = Path(arguments.out or ("runs/toy" if arguments.preset == "default" else f"runs/toy_{preset}"))
    objectives = {"all": list(OBJECTIVES), None: [config.latents.objective]}.get(
        arguments.objective, [arguments.objective]
    )
    finished: dict[str, list[tuple[dict[str, Any], Drawn]]] = {objective: [] for objective in objectives}
    for name in names:
        run_dir = out / (name if config.velocity == "trained" else f"{name}_{config.velocity}")
        print(f"{name}: {run_dir}", flush=True)
        with sole_writer(run_dir, World()):
            if arguments.redo:
                forget(run_dir, arguments.redo, objectives)
            for objective in objectives:
                one = replace(config, latents=replace(config.latents, objective=objective))
                finished[objective].append(run_one(name, one, run_dir, device))
    for objective, runs in finished.items():
        rows, drawn = zip(*runs)
        if len(names) > 1:
            sheets = folder_of(objective, out)
            draw_panels(list(drawn), sheets / "figure5.png", config.map.dpi)
            draw_snapshots(list(drawn), sheets / "figure6.png", config.map.dpi)
        print(f"objective {objective}\n{summary(rows)}")
    if len(objectives) > 1 or len(names) > 1:
        draw_objectives(
            {o: [drawn for _, drawn in runs] for o, runs in finished.items()}, out / "objectives.png", config.map.dpi
        )
    if len(objectives) > 1:
        print(comparison([row for runs in zip(*finished.values()) for row, _ in runs]))
    print(f"pictures and numbers: {out if len(names) > 1 else run_dir}")


if __name__ == "__main__":
    main()
