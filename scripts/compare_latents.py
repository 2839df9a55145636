"""What the latents of trained autoencoders are like, side by side: how reconstructions bear noise, whether midpoints decode to digits, spectra.

python scripts/compare_latents.py runs/a_seed0 runs/a_seed1 runs/b_seed0 [--json runs/latents.json] [--draw latents.png] [--noise 0.2 0.5]
python scripts/compare_latents.py --json runs/latents.json --draw docs/latents.png                  measures nothing

A run is a folder with a trained autoencoder. Runs whose names differ behind ``_seed`` alone share a row. Images are the held-out ones of the
run's own config, where it has some. What else lies in a run is shown with it: metrics and time of its generators, and the likelihood under its
normalizing flow that ``python -m simflow likelihood`` measured. Results are kept in the JSON file as they come; what is there of the
same networks and noise is not measured again. Prints a table. Formulas are in flowprior/metrics/latent_statistics.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flowprior.data.images import ImageSource, open_images, to_uint8  # noqa: E402
from flowprior.distributed import World, best_device  # noqa: E402
from flowprior.errors import UserError, entry_point  # noqa: E402
from flowprior.metrics import judge_confidence  # noqa: E402
from flowprior.metrics.latent_statistics import (  # noqa: E402
    autocorrelation,
    high_frequency_ratio,
    midpoints,
    spectral_entropy,
    total_variation,
    variance_shares,
)
from flowprior.notes import note  # noqa: E402
from flowprior.run.files import file_sha256, read_json, write_json  # noqa: E402
from flowprior.training.randomness import stream_seed  # noqa: E402
from generation.autoencoder import decode_to_uint8  # noqa: E402
from generation.config import GenerationConfig  # noqa: E402
from generation.generate import load_drawer  # noqa: E402
from mar.config import MARStageConfig  # noqa: E402
from scripts.kept_results import refuse_same_names  # noqa: E402
from simflow.config import SimFlowStageConfig  # noqa: E402
from simflow.train_simflow import ae_config_of  # noqa: E402
from sit.config import SiTStageConfig  # noqa: E402
from tokenizer.autoencoder import Autoencoder  # noqa: E402
from tokenizer.metrics import Meter, build_meters  # noqa: E402
from tokenizer.reconstruct import encoded, measure, measure_with_noise  # noqa: E402

NOISE = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
FORMULAS = 2  # version of what is computed: figures of two do not compare
SURE = 0.9  # the judge's probability of one digit
GENERATORS: dict[str, type[GenerationConfig]] = {
    stage.NAME: stage for stage in (MARStageConfig, SiTStageConfig, SimFlowStageConfig)
}
TIMED_IMAGES = 100
COLUMNS = {
    "psnr": "PSNR",
    "rfid": "rFID",
    "sure_images": "sure of images",
    "sure_reconstructions": "of reconstructions",
    "sure_midpoints": "of decoded midpoints",
    "sure_pixel_midpoints": "of pixels' midpoints",
    "latent_std": "std over images",
    "variance_tokens": "tokens' own means, of the variance",
    "spectral_entropy": "spectral entropy",
    "high_frequency_ratio": "high frequencies",
    "total_variation": "total variation",
    "autocorrelation_1": "autocorrelation at 1",
    "bits_per_dimension": "bits per dimension, in each run's own units",
}


@entry_point
def main() -> None:
    arguments = parse()
    results = read_json(arguments.json, "results") if arguments.json.is_file() else {}
    refuse_same_names(arguments.runs)
    for run in arguments.runs:
        made_from = {
            "formulas": FORMULAS,
            "networks": fingerprints(run),
            "images": open_images(ae_config_of(run).held_out_data()).fingerprint(),
            "noise": list(arguments.noise),
            "preset": arguments.preset,
        }
        if results.get(run.name, {}).get("made_from") != made_from:
            results[run.name] = measure_run(run, arguments.noise, arguments.preset) | {"made_from": made_from}
            write_json(arguments.json, results)
            print(f"{run}: measured", file=sys.stderr, flush=True)
    if not results:
        raise UserError(
            f"there is nothing to show: name run folders, or a --json that holds results, not {arguments.json}"
        )
    print(table(results))
    if arguments.draw:
        draw(results, arguments.draw)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders")
    parser.add_argument("--json", type=Path, default=Path("runs/latents.json"))
    parser.add_argument("--draw", type=Path, help="picture of rFID and PSNR against noise, and of the autocorrelation")
    parser.add_argument(
        "--noise",
        nargs="+",
        type=float,
        default=NOISE,
        help="shares of the deviation over images, of every token and channel",
    )
    parser.add_argument("--preset", default="digits", help="of stage 3, for what runs' generators do not state")
    return parser.parse_args()


def fingerprints(run: Path) -> dict[str, str]:
    """Hashes of the weights of the run's autoencoder and generators, and of what was measured of these."""
    weights = ["ae/autoencoder/model.safetensors", *(f"{name}/generator/model.safetensors" for name in GENERATORS)]
    measured = [f"{name}/{file}.json" for name in GENERATORS for file in ("evaluation", "likelihood")]
    return {name: file_sha256(run / name) for name in weights + measured if (run / name).is_file()}


@torch.no_grad()
def measure_run(run: Path, noise: list[float], preset: str) -> dict[str, Any]:
    """All figures of one run; see the module."""
    config = ae_config_of(run)
    autoencoder = Autoencoder.load(run / "ae" / "autoencoder").to(best_device())
    images = open_images(config.held_out_data())

    def meters() -> list[Meter]:
        names = ["fidelity", *["rfid"] * bool(config.evaluate.extractor)]
        return build_meters(names, config.meter_context(len(images), best_device()))

    if len(images) < 2:
        raise UserError(f"{run} measures on {len(images)} image: latents are compared over two or more")
    codes = torch.cat([latents for _, latents in encoded(autoencoder, images, 0, "latents")])  # (N, T, C)
    deviation = codes.std(0)  # (T, C), over images
    found: dict[str, Any] = {"images": len(images), "held_out": config.holds_out}
    found |= measure(autoencoder, images, meters())
    found |= measure_with_noise(autoencoder, images, {share: meters() for share in noise}, std=deviation)
    found |= {"latent_std": deviation.square().mean().sqrt().item(), "variance_tokens": variance_shares(codes).tokens}
    found |= of_places(codes)
    if config.data.embedded:
        found |= of_midpoints(autoencoder, images, codes, config.data.source)
    else:
        note("only embedded images have a judge: no share of midpoints is measured")
    found |= of_generators(run, preset)
    return found


def of_places(codes: Tensor) -> dict[str, Any]:
    """How latents ``(N, T, C)`` vary over their tokens."""
    along = autocorrelation(codes)
    return {
        "spectral_entropy": spectral_entropy(codes),
        "high_frequency_ratio": high_frequency_ratio(codes),
        "total_variation": total_variation(codes),
        "autocorrelation": along.tolist(),
        "autocorrelation_1": along[1].item(),
    }


def of_midpoints(autoencoder: Autoencoder, images: ImageSource, codes: Tensor, judge: str) -> dict[str, float]:
    """Of what share the judge of the data set ``judge`` is sure: images, reconstructions, decoded midpoints of two images, midpoints of pixels."""
    originals = torch.cat([batch for batch, _ in encoded(autoencoder, images, 0, "images")])
    between, other = midpoints(codes, torch.Generator().manual_seed(stream_seed("midpoints")))
    pixels = (originals.float() + originals[other].float()) / 2
    return {
        "sure_images": sure_share(judge, originals),
        "sure_reconstructions": sure_share(judge, decode_to_uint8(autoencoder, codes)),
        "sure_midpoints": sure_share(judge, decode_to_uint8(autoencoder, between)),
        "sure_pixel_midpoints": sure_share(judge, to_uint8(pixels / 127.5 - 1)),
    }


def sure_share(judge: str, images: Tensor) -> float:
    """Share of ``images``, uint8 ``(N, 3, H, W)``, in which the judge of the data set ``judge`` gives one digit ``SURE`` or more."""
    return (judge_confidence(judge, images) >= SURE).double().mean().item()


def of_generators(run: Path, preset: str) -> dict[str, Any]:
    """What stands in the run's evaluations, and how long its generators take for an image and its decoding."""
    found: dict[str, Any] = {}
    for name, stage in GENERATORS.items():
        if not (run / name / "generator" / "config.json").is_file():
            continue
        config = stage.read("", ["--preset", preset, f"run_dir={run}"])
        found[f"{name}_seconds_per_image"], found[f"{name}_processor_seconds_per_image"] = timed(config)
        if (run / name / "evaluation.json").is_file():
            evaluation = read_json(run / name / "evaluation.json", "evaluation")
            by_cfg = evaluation["metrics"]
            best = evaluation.get("best_cfg") or min(by_cfg, key=float)
            kept = {metric: by_cfg[best][metric] for metric in ("fid", "recall") if metric in by_cfg[best]}
            found |= {f"{name}_{metric}": value for metric, value in kept.items()} | {f"{name}_cfg": float(best)}
        if (run / name / "likelihood.json").is_file():
            found |= read_json(run / name / "likelihood.json", "likelihood")["metrics"]
    return found


def timed(config: GenerationConfig) -> tuple[float, float]:
    """Seconds by the clock and of the processor for an image in a batch of ``TIMED_IMAGES``, without guidance."""
    drawer, _ = load_drawer(config, World())
    labels = torch.arange(drawer.bundle.model.num_classes)
    drawer.draw(range(2), labels, 1.0)
    clock, processor = time.perf_counter(), time.process_time()
    drawer.draw(range(TIMED_IMAGES), labels, 1.0)
    return (time.perf_counter() - clock) / TIMED_IMAGES, (time.process_time() - processor) / TIMED_IMAGES


def grouped(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Runs by their name without the seed."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, found in results.items():
        groups.setdefault(name.split("_seed")[0], []).append(found)
    return groups


def table(results: dict[str, Any]) -> str:
    """Means and deviations over the seeds, in Markdown: a row for every figure, a column for every kind of run."""
    groups = grouped(results)
    named = dict.fromkeys(name for found in results.values() for name, value in found.items() if _is_number(value))
    shown = COLUMNS | {name: name.replace("_", " ") for name in named if name not in COLUMNS}
    lines = ["| | " + " | ".join(f"{name} ({len(runs)})" for name, runs in groups.items()) + " |"]
    lines.append("|---" * (len(groups) + 1) + "|")
    for name, title in shown.items():
        if name in named:
            cells = [spread([run[name] for run in runs if _is_number(run.get(name))]) for runs in groups.values()]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    if not values:
        return "-"
    digits = 2 if abs(statistics.fmean(values)) >= 10 else 3
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def draw(results: dict[str, Any], file: Path) -> None:
    """rFID and PSNR against noise on the latents, and the autocorrelation over tokens: every run, and each kind's mean."""
    figure, panels = plt.subplots(1, 3, figsize=(11.5, 3.4), dpi=150)
    for number, (name, runs) in enumerate(grouped(results).items()):
        for axes, metric in zip(panels, ("rfid", "psnr")):
            curves = [noise_curve(run, metric) for run in runs if metric in run]
            plot(axes, curves, name, number)
        plot(panels[2], [list(enumerate(run["autocorrelation"])) for run in runs], name, number)
    noise = "noise, in the latents' deviation over images"
    panels[0].set(xlabel=noise, ylabel="rFID", yscale="log")
    panels[1].set(xlabel=noise, ylabel="PSNR (dB)")
    panels[2].set(xlabel="distance of two tokens", ylabel="autocorrelation")
    panels[0].legend(frameon=False)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def noise_curve(run: dict[str, Any], metric: str) -> list[tuple[float, float]]:
    """Points ``(share, value)`` by growing share, from no noise on."""
    prefix = f"{metric}_noise_"
    noisy = [(float(name.removeprefix(prefix)), value) for name, value in run.items() if name.startswith(prefix)]
    return [(0.0, run[metric]), *sorted(noisy)]


def plot(axes: Any, curves: list[list[tuple[float, float]]], name: str, number: int) -> None:
    for curve in curves:
        axes.plot(*zip(*curve), f"C{number}-", alpha=0.3, linewidth=0.8)
    if curves:
        xs = [x for x, _ in curves[0]]
        axes.plot(
            xs, [statistics.fmean(y for _, y in at) for at in zip(*curves)], f"C{number}o-", markersize=3, label=name
        )


if __name__ == "__main__":
    main()
