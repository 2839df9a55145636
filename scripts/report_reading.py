"""What the stages of a run have written into its folder, as the report and its pictures read it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

GENERATORS = {"mar": "MAR", "sit": "SiT", "simflow": "autoregressive flow"}  # folders of a run, and what they hold


SCRIPTS = {
    "flowhead": "train_flowhead",
    "ae": "train_ae",
    "sit": "train_sit",
    "simflow": "train_tarflow",
}  # by a stage's folder


def measured_generators(run: Path) -> list[str]:
    """The folders of the run's generators that were measured; the first of all where none was."""
    return [name for name in GENERATORS if (run / name / "evaluation.json").is_file()] or list(GENERATORS)[:1]


def read(path: Path) -> dict[str, Any]:
    """A stage's JSON file; where it is missing, one line that names the stage's script, and exit code 2."""
    if not path.is_file():
        script = SCRIPTS.get(path.parent.name, "train_mar")
        print(
            f"error: {path} is not there: finish with `bash scripts/{script}.sh run_dir={path.parents[1]}`",
            file=sys.stderr,
        )
        sys.exit(2)
    return json.loads(path.read_text())


def read_rows(path: Path, *names: str) -> list[dict[str, float]]:
    """The log's rows that have all of ``names``."""
    return [row for row in map(json.loads, path.read_text().splitlines()) if all(name in row for name in names)]


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
