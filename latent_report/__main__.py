"""How hard it will be to generate from a latent space, and why: a report on one tokenizer, or on several side by side.

    bash scripts/latent_report.sh TOKENIZER [TOKENIZER ...] [option=value ...]

A tokenizer is a run's folder or an autoencoder's, or one of diffusers' AutoencoderKL, here or as user/name on the hub; a latent cache; or an
.npz, .npy or .safetensors file of latents, (N, tokens, channels) or (N, channels, h, w). Images are the embedded digits, or those that DATA
names. Writes report.html and report.json into the folder out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowprior.errors import UserError, entry_point
from flowprior.heap import keep_freed_memory
from flowprior.notes import note
from flowprior.run.config import apply_overrides, build_config, to_dict
from flowprior.run.files import write_bytes, write_json
from flowprior.run.presets import Parser
from latent_report.bootstrap import Estimate
from latent_report.config import PROTOCOL_VERSION, ReportConfig
from latent_report.figures import FIGURES, number
from latent_report.forecast import expected, kept_forecasts, lines
from latent_report.kept import Kept
from latent_report.left_out import by_reason
from latent_report.measure import Group, Results, finished, measure, measure_distribution, measure_places
from latent_report.measure_flows import measure_flow
from latent_report.measure_images import measure_alignment, measure_reconstruction, measure_semantics
from latent_report.opening import ImageOptions, Latents, open_tokenizer, read_labels
from latent_report.page import page

MEASURES: dict[str, Group] = {
    "reconstruction": measure_reconstruction,
    "distribution": measure_distribution,
    "dependence": measure_places,
    "flow": measure_flow,
    "semantics": measure_semantics,
    "alignment": measure_alignment,
}


@entry_point
def main() -> None:
    names, config = parse(sys.argv[1:])
    keep_freed_memory()
    write_report(names, config)


def parse(argv: Sequence[str]) -> tuple[list[str], ReportConfig]:
    """The tokenizers of a command line and its options, ``option=value``."""
    parser = Parser(prog="latent_report", description=__doc__, options_of=ReportConfig)
    parser.add_argument("words", nargs="*", metavar="TOKENIZER or option=value")
    words = parser.parse_args(argv).words
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    names = [word for word in words if word not in overrides]
    if not names:
        raise UserError("name a tokenizer: bash scripts/latent_report.sh runs/digits (--help says what a tokenizer is)")
    if len(set(names)) < len(names):
        raise UserError("a tokenizer is named twice: name each once")
    return names, build_config(ReportConfig, apply_overrides({}, overrides))


def write_report(names: list[str], config: ReportConfig) -> dict[str, Any]:
    """Measure what is missing of every tokenizer's figures, one tokenizer after the other; write both files."""
    labels = read_labels(config.labels) if config.labels else None
    forecasts = kept_forecasts(config.forecast)
    entries, pictures = [], []
    for name, path, (about, results) in zip(
        short_names(names), names, all_results(names, config, ImageOptions(config.data, config.images, labels))
    ):
        for what, why in by_reason(results.left_out):
            note(f"{name}: {what} left out, since {why}")
        for figure, remark in results.remarks.items():
            note(f"{name}: {FIGURES[figure].label}: {remark}")
        entries.append({"name": name, "path": path, **about, **plain_results(results)})
        pictures.append(results.pictures)
    if forecasts:
        entries = [one | {"forecast": expected(one, config, forecasts)} for one in entries]
    report = {
        "format": PROTOCOL_VERSION,
        "protocol": {"options": to_dict(config), "standard error": "over images", "posterior": "its mean"},
        "figures": {name: figure._asdict() for name, figure in FIGURES.items()},
        "tokenizers": entries,
    }
    out = Path(config.out)
    write_bytes(out / "report.html", page(report, pictures).encode())
    write_json(out / "report.json", report)
    print_table(report)
    print(f"report: {out / 'report.html'}")
    return report


def all_results(
    names: list[str], config: ReportConfig, options: ImageOptions
) -> Iterator[tuple[dict[str, Any], Results]]:
    """What the report says of each tokenizer's latents, and their figures: those that are kept, and the missing ones as they are measured."""
    shown = short_names(names)
    files = [Kept.of(name, config, options) for name in names]
    before = [file.read(name) for name, file in zip(shown, files)]
    # Whoever cannot be read is said before any is measured.
    opened = [
        None if results.seconds.keys() == MEASURES.keys() else open_tokenizer(name, options)
        for name, (results, _) in zip(names, before)
    ]
    for name, latents, file, (results, about) in zip(shown, opened, files, before):
        if latents is None:
            note(f"{name}: its figures are kept as they were measured ({file.file})")
            yield about, finished(results)
        else:
            about = about_latents(latents)
            yield about, measured(name, latents, config, results, partial(file.write, latents=about))


def measured(
    name: str, latents: Latents, config: ReportConfig, results: Results, keep: Callable[[Results], None]
) -> Results:
    """All figures of a tokenizer, of which ``results`` has some groups."""
    count, tokens, channels = latents.latents.shape
    note(f"{name}: {count} images, {tokens} tokens of {channels} channels")
    if results.seconds:
        note(f"{name}: {', '.join(results.seconds)} kept as measured before it was stopped; the rest follows")
    return measure(latents, config, MEASURES, results, keep)


def about_latents(latents: Latents) -> dict[str, Any]:
    """What ``report.json`` says of one tokenizer's latents."""
    count, _, channels = latents.latents.shape
    return {
        "kind": latents.kind,
        "images": count,
        "places": list(latents.places),
        "channels": channels,
        "about": latents.about,
    }


def plain_results(results: Results) -> dict[str, Any]:
    """What it says of its figures."""
    return {
        "weights": results.weights,
        "figures": {key: _plain(estimate) for key, estimate in results.figures.items()},
        "curves": {key: {axis: _list(v) for axis, v in curve.items()} for key, curve in results.curves.items()},
        "left_out": results.left_out,
        "remarks": results.remarks,
        "seconds": {key: round(value, 1) for key, value in results.seconds.items()},
    }


def short_names(paths: list[str]) -> list[str]:
    """What tells tokenizers apart: their paths without the parts that begin or end all of them."""
    parts = [[part for part in path.split("/") if part not in ("", ".")] for path in paths]
    roots = ["/" * path.startswith("/") for path in paths]
    while min(map(len, parts)) > 1 and len({part[0] for part in parts}) == 1:
        parts, roots = [part[1:] for part in parts], [""] * len(paths)
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({part[-1] for part in parts}) == 1:
        parts = [part[:-1] for part in parts]
    return [root + "/".join(part) for root, part in zip(roots, parts)]


def print_table(report: dict[str, Any]) -> None:
    """Every figure that was measured, on the terminal."""
    tokenizers = report["tokenizers"]
    rows = [["", *(one["name"] for one in tokenizers)]]
    for name, figure in FIGURES.items():
        if any(name in one["figures"] for one in tokenizers):
            rows.append([figure.label, *(number(figure, one["figures"].get(name)) for one in tokenizers)])
    print_rows(rows)
    if forecast := lines(report):
        print("\nexpected of generators")
        print_rows(forecast)


def print_rows(rows: list[list[str]]) -> None:
    """In columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {"value": float(estimate.value), "error": None if estimate.error is None else float(estimate.error)}


def _list(values: Tensor | None) -> list[float] | None:
    return None if values is None else torch.as_tensor(values, dtype=torch.float64).tolist()


if __name__ == "__main__":
    main()
