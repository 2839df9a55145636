"""The report of a run: one self-contained HTML page with pictures, metrics and their protocol, and a table on the terminal.

    python scripts/report.py runs/digits [--print-only]

Reads what the stages wrote into the run's folder and computes nothing anew. Writes ``report.html`` and ``overview.png`` there.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

BLUE, RED, GREEN, GREY = "#2b6cb0", "#c53030", "#2f855a", "#718096"
FORMS = {
    "psnr": ("PSNR", ".2f", " dB"),
    "ssim": ("SSIM", ".4f", ""),
    "rfid": ("rFID", ".3f", ""),
    "fid": ("FID", ".3f", ""),
    "inception_score": ("IS", ".2f", ""),
    "recognised": ("recognised", ".2%", ""),
}  # label, format, unit
GENERATORS = {"mar": "MAR", "sit": "SiT", "simflow": "autoregressive flow"}  # folders of a run, and what they hold


def measured_generators(run: Path) -> list[str]:
    """The folders of the run's generators that were measured; the first of all where none was."""
    return [name for name in GENERATORS if (run / name / "evaluation.json").is_file()] or list(GENERATORS)[:1]


def read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        print(f"error: {path} is not there: finish the run with `bash scripts/quickstart.sh`", file=sys.stderr)
        sys.exit(2)
    return json.loads(path.read_text())


def read_rows(path: Path, *names: str) -> list[dict[str, float]]:
    """The log's rows that have all of ``names``."""
    return [row for row in map(json.loads, path.read_text().splitlines()) if all(name in row for name in names)]


def metrics_text(metrics: dict[str, float | None]) -> str:
    """Every figure with its name, whatever was measured; a deviation ``<name>_std`` stands behind its mean."""
    texts = []
    for name, value in metrics.items():
        if name.endswith("_std") and name.removesuffix("_std") in metrics:
            continue
        name_alone, _, noise = name.partition("_noise_")
        label, form, unit = FORMS.get(name_alone, (name_alone.replace("_", " "), ".3f", ""))
        label += f" with noise {noise}" if noise else ""
        if value is None:
            texts.append(f"{label} not measured")
            continue
        deviation = f" +- {metrics[f'{name}_std']:{form}}" if f"{name}_std" in metrics else ""
        texts.append(f"{label} {value:{form}}{deviation}{unit}")
    return "  ".join(texts)


def measured_images(protocol: dict[str, Any]) -> str:
    """How many images an autoencoder's metrics are of, and whether it was trained on them."""
    kinds = {True: "held-out ", False: "training ", None: ""}  # an evaluation of before does not say
    return f"{protocol['count']} {kinds[protocol.get('held_out')]}images"


def summary(run: Path) -> list[tuple[str, str]]:
    """The metrics that the terminal and the page's head show."""
    generators = measured_generators(run)
    stages = {name: read(run / name / "result.json") for name in ("flowhead", "ae", *generators)}
    reconstruction = read(run / "ae" / "evaluation.json")
    measured = f"{metrics_text(reconstruction['metrics'])}  (on {measured_images(reconstruction['protocol'])})"
    rows, halves = [("autoencoder", measured)], None
    for name in generators:
        evaluation = read(run / name / "evaluation.json")
        halves = evaluation.get("half_half_fid", halves)
        for cfg, metrics in evaluation["metrics"].items():
            best = "  <- best" if cfg == evaluation.get("best_cfg") else ""
            rows.append((f"{GENERATORS[name]}, cfg {cfg}", metrics_text(metrics) + best))
    if halves:
        rows.append(
            (
                "FID of real halves",
                f"{halves['mean']:.3f} +- {halves['std']:.3f} (one random half of the real images against the other; "
                "a yardstick: with half as many images a side it lies above what the generator's FID can reach)",
            )
        )
    rows.append(("training time", "  ".join(f"{name} {stage['seconds']:.0f} s" for name, stage in stages.items())))
    rows.append(("peak memory", f"{max(stage['peak_memory_gb'] for stage in stages.values()):.1f} GB"))
    return rows


def print_table(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


class Page:
    """Collects sections of HTML with the pictures inside."""

    def __init__(self, title: str) -> None:
        self.title, self.parts = title, []

    def section(self, heading: str, text: str) -> None:
        self.parts.append(f"<h2>{html.escape(heading)}</h2><p>{text}</p>")

    def picture(self, png: bytes, caption: str, pixelated: bool = False) -> None:
        style = ' class="pixels"' if pixelated else ""
        source = base64.b64encode(png).decode()
        self.parts.append(
            f'<figure><img{style} alt="{html.escape(caption)}" src="data:image/png;base64,{source}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )

    def table(self, rows: list[tuple[str, str]]) -> None:
        body = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in rows)
        self.parts.append(f"<table>{body}</table>")

    def code(self, text: str) -> None:
        self.parts.append(f"<pre>{html.escape(text)}</pre>")

    def write(self, path: Path) -> None:
        style = (
            "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1a202c}"
            "figure{margin:1rem 0}img{max-width:100%}img.pixels{image-rendering:pixelated}figcaption{color:#4a5568;font-size:.9rem}"
            "table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1rem .2rem 0;border-bottom:1px solid #e2e8f0;font-weight:normal}"
            "th{white-space:nowrap;color:#4a5568}td{font-variant-numeric:tabular-nums}"
            "pre{background:#f7fafc;padding:1rem;overflow:auto;font-size:.8rem}summary{cursor:pointer}"
        )
        text = (
            f"<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
            f"<title>{html.escape(self.title)}</title><style>{style}</style><body><h1>{html.escape(self.title)}</h1>{''.join(self.parts)}</body></html>"
        )
        path.write_text(text)


def figure_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=130, bbox_inches="tight")
    return buffer.getvalue()


def prior_points(run: Path) -> dict[str, Any]:
    """Equally many target features and prior samples on the two principal axes of the target, each ``(n, 2)``."""
    import numpy as np
    from safetensors.numpy import load_file

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
    import numpy as np

    points = prior_points(run)
    plane, colours = np.concatenate(list(points.values())), np.repeat([BLUE, RED], [len(p) for p in points.values()])
    order = np.random.default_rng(0).permutation(len(plane))
    axis.scatter(plane[order, 0], plane[order, 1], s=2, alpha=0.4, c=colours[order], linewidths=0)
    for label, colour in zip(points, (BLUE, RED)):
        axis.scatter([], [], color=colour, label=label)
    axis.set(xlabel="first principal axis", ylabel="second principal axis", title="flow prior")
    axis.legend(frameon=False, loc="best")


def draw_losses(axes: Any, run: Path) -> None:
    """The loss of every stage against the step."""
    for axis, (stage, title) in zip(
        axes,
        (
            ("flowhead", "flow prior: flow matching"),
            ("ae", "autoencoder"),
            *((name, GENERATORS[name]) for name in measured_generators(run)),
        ),
    ):
        rows = read_rows(run / stage / "log.jsonl", "loss")
        names = [
            n
            for n in rows[0]
            if n not in ("step", "grad_norm", "lr", "steps_per_second", "waiting_for_data") and "/" not in n
        ]
        for name, colour in zip(names, (BLUE, RED, GREEN, GREY)):
            axis.plot([row["step"] for row in rows], [row[name] for row in rows], color=colour, label=name, linewidth=1)
        axis.set(yscale="log", xlabel="step", title=title)
        axis.legend(frameon=False)


def draw_alignment(axes: Any, run: Path) -> None:
    """Alignment loss and kNN distance over training, and against each other (Fig. 4 of the paper)."""
    import numpy as np

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
    """Latent statistics over training, and the channels' standard deviations in the cache."""
    rows = read_rows(run / "ae" / "log.jsonl", "latent_std")
    steps = [row["step"] for row in rows]
    for name, label, colour in (("latent_std", "standard deviation", BLUE), ("latent_mean", "mean", GREY)):
        axes[0].plot(steps, [row[name] for row in rows], label=label, color=colour)
    axes[0].set(xlabel="step", title="latents")
    axes[0].legend(frameon=False)
    axes[1].plot(steps, [row["latent_effective_rank"] for row in rows], color=GREEN)
    axes[1].set(xlabel="step", title="effective rank of the latents")
    statistics = read(run / "latents" / "manifest.json")["statistics"]
    axes[2].bar(range(len(statistics["channel_std"])), statistics["channel_std"], color=BLUE)
    axes[2].set(xlabel="channel", title=f"cached std per channel, scale {statistics['scale']:.3f}")


def curves(run: Path, draw: Any, panels: int) -> bytes:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, panels, figsize=(4.2 * panels, 3.4), layout="constrained")
    draw(axes, run)
    png = figure_png(figure)
    plt.close(figure)
    return png


def two_scales(run: Path, name: str) -> list[str]:
    """A generator's sets without guidance (or the smallest) and with the best of the others; the largest where FID was not measured."""
    metrics = read(run / name / "evaluation.json")["metrics"]
    first, *others = sorted(metrics, key=float)

    def fid(cfg: str) -> float:
        value = metrics[cfg].get("fid")
        return math.inf if value is None else value

    return [first] + ([min(reversed(others), key=fid)] if others else [])


def classes_text(run: Path, name: str) -> str:
    """How a generator's sheets of images, ten columns wide at most, are ordered."""
    notes = [read(note)["protocol"].get("labels", "") for note in (run / name / "samples").glob("cfg_*.json")]
    in_turn = all(labels.startswith("i mod") for labels in notes)
    return ", one class a column" if in_turn and read(run / "latents" / "manifest.json")["num_classes"] <= 10 else ""


def last_picture(folder: Path, pattern: str) -> bytes:
    return sorted(folder.glob(pattern))[-1].read_bytes()


def overview(run: Path, path: Path) -> None:
    """One picture of the whole run, for a README."""
    import matplotlib.image as image
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", width_ratios=(1.1, 1.2, 1))
    draw_prior_together(axes[0], run)
    reconstructions = io.BytesIO(last_picture(run / "ae" / "pictures", "reconstructions_*.png"))
    axes[1].imshow(image.imread(reconstructions))
    axes[1].set_title("inputs (rows 1, 3) and their reconstructions (rows 2, 4)")
    name = measured_generators(run)[0]
    cfg = two_scales(run, name)[-1]
    axes[2].imshow(image.imread(run / name / "samples" / f"cfg_{cfg}.png"))
    axes[2].set_title(f"generated{classes_text(run, name)} (cfg {cfg})")
    for axis in axes[1:]:
        axis.axis("off")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_report(run: Path) -> Path:
    """Write ``report.html`` and ``overview.png``; returns the page's path."""
    import matplotlib

    matplotlib.use("Agg")
    page = Page(f"flowprior: {run.name}")
    page.table(summary(run))
    page.section(
        "1. Flow prior", "Target features and samples of the frozen flow, on the two principal axes of the target."
    )
    page.picture(curves(run, draw_prior, 2), "Target features (blue) and prior samples (red), the same window")
    page.section("2. Autoencoder", "Inputs above, reconstructions below.")
    page.picture(
        last_picture(run / "ae" / "pictures", "reconstructions_*.png"),
        "Rows 1 and 3: inputs. Rows 2 and 4: reconstructions.",
        pixelated=True,
    )
    if read_rows(run / "ae" / "log.jsonl", "alignment", "knn_log_distance"):
        page.section(
            "Alignment against density",
            "The kNN distance to target samples is a proxy of the latents' negative log-likelihood.",
        )
        page.picture(
            curves(run, draw_alignment, 2),
            "Alignment loss and mean log distance to the k-th nearest target sample, on a fixed set of images",
        )
    page.section("Latents", "Statistics on a fixed set of images over training, and of the cache.")
    page.picture(curves(run, draw_latents, 3), "Latent statistics")
    generators = measured_generators(run)
    for name in generators:
        shown = f"Samples{classes_text(run, name)}; the same seeds in every sheet."
        page.section(f"3. Generator: {GENERATORS[name]}", shown)
        for cfg in two_scales(run, name):
            sheet = (run / name / "samples" / f"cfg_{cfg}.png").read_bytes()
            page.picture(sheet, f"Generated images, guidance scale {cfg}", pixelated=True)
    page.section("Losses", "Means over the logging interval.")
    page.picture(curves(run, draw_losses, 2 + len(generators)), "Loss curves")
    page.section("Protocol", "How the metrics above were measured.")
    for stage in ("ae", *generators):
        page.code(json.dumps(read(run / stage / "evaluation.json")["protocol"], indent=1, allow_nan=False))
    page.write(run / "report.html")
    overview(run, run / "overview.png")
    return run / "report.html"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, e.g. runs/digits")
    parser.add_argument("--print-only", action="store_true", help="print the table; leave the page as it is")
    arguments = parser.parse_args()
    rows = summary(arguments.run)
    page = arguments.run / "report.html" if arguments.print_only else write_report(arguments.run)
    print_table(rows)
    print(f"report: {page}")


if __name__ == "__main__":
    main()
