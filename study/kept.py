"""A finished cell as one JSON file: its figures, and what they were made from. A file that was copied from elsewhere counts the same."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import platform
import shlex
from pathlib import Path
from typing import Any

import torch

from flowprior.errors import UserError
from flowprior.run.config import changed_options, to_dict
from flowprior.run.files import json_text, read_json, write_json
from flowprior.run.machine import device_name
from flowprior.run.reporting import read_log
from study.plan import Cell, PlannedStage
from study.stages import GENERATORS

FORMAT_VERSION = 1
REPORT_SUFFIX = ".report.json"
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "torch-fidelity")
UNFELT = {
    "batch",
    "compile",
    "preview_images",
    "preview_cfg",
    "online_count",
    "online_epochs",
    "weights",
}  # by any figure, at any depth
OF_LATENTS = ("latent_std", "target_std", "latent_effective_rank", "target_effective_rank")
OF_LATENTS += ("latent_sliced_wasserstein", "latent_sliced_wasserstein_floor", "alignment_knn_correlation")


@dataclasses.dataclass
class MeasuredImages:
    """Those that an autoencoder is measured on."""

    held_out: str = ""


def cell_file(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.json"


def result_options(config: Any) -> dict[str, Any]:
    """The options of a config that change a run's result, nested; of a registry's sections those that are chosen."""
    selector, made = getattr(config, "SELECTOR", ""), {}
    chosen = str(getattr(config, selector)).split("+") if selector else []
    for field in dataclasses.fields(config):
        value, counts = getattr(config, field.name), field.metadata.get("changes_result", True)
        nested = dataclasses.is_dataclass(value)
        if counts and not (selector and nested and field.name not in chosen):
            made[field.name] = result_options(value) if nested else value
    return to_dict_of(made)


def to_dict_of(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, as JSON reads them back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def measuring(stage: PlannedStage) -> dict[str, dict[str, Any]]:
    """How a stage's result is sampled and measured, by section: options that its run folder lets change."""
    return {name: _felt(to_dict(section)) for name, section in measuring_sections(stage).items()}


def _felt(options: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _felt(value) if isinstance(value, dict) else value for key, value in options.items() if key not in UNFELT
    }


def measuring_sections(stage: PlannedStage) -> dict[str, Any]:
    """The sections of the stage's config that say how it is sampled and measured."""
    config = stage.config()
    if stage.name == "autoencoder":
        return {"evaluate": config.evaluate, "images": MeasuredImages(config.held_out)}
    if stage.name not in GENERATORS:
        return {}
    sampler = getattr(config.model, config.model.name).sampler
    return {"sample": config.sample, "evaluate": config.evaluate, "sampler": sampler}


def measured_otherwise(kept: dict[str, Any], stage: PlannedStage) -> list[str]:
    """The options of :func:`measuring` that ``kept`` says otherwise; one that it does not know yet counts as its default."""
    told, now = [], measuring(stage)
    for name, section in measuring_sections(stage).items():
        before = _felt(to_dict(type(section)())) | (kept.get(name) or {})
        told += [f"{name}.{key}: {before[key]} -> {value}" for key, value in now[name].items() if before[key] != value]
    return told


def differences(kept: dict[str, Any], stages: list[PlannedStage]) -> list[str]:
    """What a kept cell was made from that these stages are not, in words; none where they would make it again.

    An option that the file does not know yet counts as its default, as in a run folder.
    """
    made_from, measured = kept.get("made_from") or {}, kept.get("measured") or {}
    told = made_otherwise(made_from, stages)
    for stage in stages:
        if stage.name in made_from:
            told += [f"{stage.name} {change}" for change in measured_otherwise(measured.get(stage.name) or {}, stage)]
    return told


def made_otherwise(made_from: dict[str, Any], stages: list[PlannedStage]) -> list[str]:
    """Stages and options that change a result, and that ``made_from`` says otherwise than ``stages``."""
    names = [stage.name for stage in stages]
    told = [f"no {name}" for name in names if name not in made_from]
    told += [f"a {name} more" for name in made_from if name not in names]
    for stage in stages:
        if stage.name in made_from:
            config = stage.config()
            told += [f"{stage.name} {c}" for c in changed_options(type(config), made_from[stage.name], to_dict(config))]
    return told


def read_cell(file: Path, study: str) -> dict[str, Any]:
    """A :class:`UserError` for a file that is damaged, no cell's, of another study than ``study``, or called as another cell."""
    return read_kept(file, study, "finished cell", {"data", "device", "device_type"})


def read_kept(file: Path, study: str, what: str, needed: set[str], suffix: str = ".json") -> dict[str, Any]:
    """A file that is called as its cell, and has the suffix; errors as of :func:`read_cell`."""
    kept = read_json(file, what)
    needed = needed | {"study", "row", "length", "seed", "figures"}
    if kept.get("format") != FORMAT_VERSION or not needed <= kept.keys():
        raise UserError(f"{file} is no {what} of this version: delete it, or copy it again from where it was made")
    name = cell_of(kept).name
    if (kept["study"], name) != (study, file.name.removesuffix(suffix)):
        raise UserError(
            f"{file} holds the cell {name} of the study {kept['study']}: give it its own name again, or delete it"
        )
    return kept


def read_cells(folder: Path, study: str) -> list[dict[str, Any]]:
    """All finished cells of a study in a folder, by name."""
    files = (file for file in sorted(folder.glob("*.json")) if not file.name.endswith(REPORT_SUFFIX))
    return [read_cell(file, study) for file in files]


def cell_of(kept: dict[str, Any]) -> Cell:
    """Which cell a file says that it is of."""
    return Cell(kept["row"], kept["length"], kept["seed"])


def write_cell(
    file: Path,
    study: str,
    cell: Cell,
    stages: list[PlannedStage],
    spent: dict[str, dict[str, float]],
    tflop: dict[str, float],
    device: torch.device,
) -> None:
    """Gather a finished cell's figures from its run folder and write its file, whole or not at all.

    Args:
        file: to write.
        study: the table's name.
        cell: which one.
        stages: all that its figures depend on.
        spent: seconds by stage: ``seconds`` of the clock and ``cpu_seconds``.
        tflop: counted arithmetic of each stage's training.
        device: that the stages ran on.
    """
    made_from = {stage.name: result_options(stage.config()) for stage in stages}
    measured = {stage.name: how for stage in stages if (how := measuring(stage))}
    made = json_text({"made_from": made_from, "measured": measured})
    write_json(
        file,
        {
            "format": FORMAT_VERSION,
            "study": study,
            **dataclasses.asdict(cell),
            "fingerprint": hashlib.sha256(made.encode()).hexdigest()[:16],
            "figures": {stage.name: figures(stage) for stage in stages},
            "spent": spent,
            "tflop": tflop,
            "data": images_of(stages),
            "device": device_name(device),
            "device_type": device.type,
            "versions": versions(),
            "words": {stage.name: shlex.join(stage.words) for stage in stages},
            "measured": measured,
            "made_from": made_from,
        },
    )


def images_of(stages: list[PlannedStage]) -> str:
    """Fingerprint of the images that the cell's autoencoder was trained on."""
    [stage] = [stage for stage in stages if stage.name == "autoencoder"]
    return str(read_json(stage.run_dir / stage.stage.folder / "inputs.json", "list of inputs")["data"])


def figures(stage: PlannedStage) -> dict[str, Any]:
    """What a complete stage's files say of it."""
    folder = stage.run_dir / stage.stage.folder
    result = read_json(folder / "result.json", "result")
    if stage.name == "prior":
        return {name: result[name] for name in ("fingerprint", "target", "loss") if name in result}
    evaluation = read_json(folder / "evaluation.json", "evaluation")
    if stage.name == "autoencoder":
        of_latents = {name: result[name] for name in OF_LATENTS if name in result}
        rows = [[row["step"], row["psnr"]] for row in read_log(folder / "log.jsonl") if "psnr" in row]
        return {"fingerprint": result["fingerprint"], **evaluation["metrics"], **of_latents, "psnr_over_steps": rows}
    made = {"fingerprint": result["fingerprint"], "by_guidance": evaluation["metrics"]}
    splits = evaluation.get("half_half_fid")
    return made | ({"half_half_fid": splits["mean"]} if splits else {})


def versions() -> dict[str, str]:
    """Of Python and of the libraries that figures depend on."""
    there = {dist: importlib.metadata.version(dist) for dist in LIBRARIES}
    return {"python": platform.python_version(), **there}
