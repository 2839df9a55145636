"""The report of a run: one self-contained HTML page with pictures, metrics and their protocol, and a table on the terminal.

    python scripts/report.py runs/digits [--print-only]

Reads what the stages wrote into the run's folder and computes nothing anew. A flow prior or an autoencoder of another run is left out.
Writes ``report.html`` and ``overview.png`` there.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flowprior.rounding import rounded_with_error  # noqa: E402
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

FORMS = {
    "psnr": ("PSNR", ".2f", " dB"),
    "ssim": ("SSIM", ".4f", ""),
    "rfid": ("rFID", ".3f", ""),
    "fid": ("FID", ".3f", ""),
    "inception_score": ("IS", ".2f", ""),
    "recognised": ("recognised", ".2%", ""),
}  # label, format, unit


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
        shown, deviation = rounded_with_error(value, metrics.get(f"{name}_std"), form)
        texts.append(f"{label} {shown}" + (f" +- {deviation}" if deviation else "") + unit)
    return "  ".join(texts)


def measured_images(protocol: dict[str, Any]) -> str:
    """How many images an autoencoder's metrics are of, and whether it was trained on them."""
    kinds = {True: "held-out ", False: "training ", None: ""}  # not known of one that was imported
    return f"{protocol['count']} {kinds[protocol.get('held_out')]}images"


def summary(run: Path) -> list[tuple[str, str]]:
    """The metrics that the terminal and the page's head show."""
    generators = measured_generators(run)
    stages = {name: read(run / name / "result.json") for name in trained_stages(run)}
    rows, halves = [], None
    # One that was imported has been measured or has not.
    if has(run, "ae") or (run / "ae" / "evaluation.json").is_file():
        reconstruction = read(run / "ae" / "evaluation.json")
        measured = f"{metrics_text(reconstruction['metrics'])}  (on {measured_images(reconstruction['protocol'])})"
        rows.append(("autoencoder", measured))
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
                f"{' +- '.join(rounded_with_error(halves['mean'], halves['std']))} (one random half of the real images against the other; "
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


def write_report(run: Path) -> Path:
    """Write ``report.html`` and ``overview.png``; returns the page's path."""
    from scripts.report_pictures import (  # matplotlib is slow to import, and the table on the terminal needs none
        curves,
        draw_alignment,
        draw_cache,
        draw_latents,
        draw_losses,
        draw_prior,
        last_picture,
        overview,
    )

    page = Page(f"flowprior: {run.name}")
    page.table(summary(run))
    if has(run, "flowhead"):
        shown = "Target features and samples of the frozen flow, on the two principal axes of the target."
        page.section("Flow prior", shown)
        page.picture(curves(run, draw_prior, 2), "Target features (blue) and prior samples (red), the same window")
    if has(run, "ae"):
        page.section("Autoencoder", "Inputs above, reconstructions below.")
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
        page.section("Latents", "Statistics on a fixed set of images over training.")
        page.picture(curves(run, draw_latents, 2), "Latent statistics")
    if (run / "latents" / "manifest.json").is_file():
        page.section("Cached latents", "What generators are trained on.")
        page.picture(curves(run, draw_cache, 1), "Standard deviation of every channel")
    generators = measured_generators(run)
    for name in generators:
        shown = f"Samples{classes_text(run, name)}; the same seeds in every sheet."
        page.section(f"Generator: {GENERATORS[name]}", shown)
        for cfg in two_scales(run, name):
            sheet = (run / name / "samples" / f"cfg_{cfg}.png").read_bytes()
            page.picture(sheet, f"Generated images, guidance scale {cfg}", pixelated=True)
    page.section("Losses", "Means over the logging interval.")
    page.picture(curves(run, draw_losses, len(trained_stages(run))), "Loss curves")
    page.section("Protocol", "How the metrics above were measured.")
    for stage in (*["ae"] * has(run, "ae"), *generators):
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
