"""What the stages of a run have written into its folder, as the report and its pictures read it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import yaml

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


def has(run: Path, stage: str) -> bool:
    """Whether ``flowhead`` or ``ae`` is of this run: later stages may take another run's, and an autoencoder no prior. Of an empty run all are."""
    if stage == "ae" and any(_trained_jointly(run / name) for name in GENERATORS):
        return True
    later = {"flowhead": ["ae", *GENERATORS], "ae": [*GENERATORS]}[stage]
    own = any((run / stage / name).is_file() for name in ("config.yaml", "log.jsonl", "result.json"))  # else imported
    return own or not any((run / name).is_dir() for name in later)


def trained_stages(run: Path) -> list[str]:
    """The folders of what was trained by itself in this run; a flow that was trained with the autoencoder is a part of that."""
    before = [stage for stage in ("flowhead", "ae") if has(run, stage)]
    return [*before, *(name for name in measured_generators(run) if not _trained_jointly(run / name))]


def _is_joint(run: Path) -> bool:
    """Whether the run's autoencoder was trained, or is being trained, with a flow."""
    file = run / "ae" / "config.yaml"
    return file.is_file() and "simflow" in yaml.safe_load(file.read_text())["regulariser"]["name"].split("+")


def _trained_jointly(folder: Path) -> bool:
    file = folder / "generator" / "config.json"
    return file.is_file() and json.loads(file.read_text()).get("about", {}).get("trained") == "with the autoencoder"


def read(path: Path) -> dict[str, Any]:
    """A stage's JSON file; where it is missing, one line that names the stage's script, and exit code 2."""
    if not path.is_file():
        script = "train_simflow" if _is_joint(path.parents[1]) else SCRIPTS.get(path.parent.name, "train_mar")
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
    if not all(labels.startswith("i mod") for labels in notes):
        return ""
    cache = run / "latents" / "manifest.json"
    about = read(cache) if cache.is_file() else read(run / name / "generator" / "config.json")["shape"]
    return ", one class a column" if about["num_classes"] <= 10 else ""
