"""The stages at a size that trains in a second, what each needs, and the hash of what it leaves."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from flowprior.run.files import tensors_fingerprint
from flowprior.run.reporting import TIMINGS, read_log
from flowprior.training.checkpoint import named_entries
from soak.processes import Instrument, Process, command, nothing

STEPS = 40
TRAIN = [
    f"train={{steps: {STEPS}, global_batch: 16, accumulation: 2, checkpoint_steps: 5, eval_steps: 20, log_steps: 1, tensorboard: false}}",
    "optim={lr: 2e-3, warmup_steps: 6, ema_decay: 0.99, weight_decay: 0.01}",
]
VIT = "{width: 12, depth: 1, heads: 3}"
GENERATION = [
    "data.size=16",
    "cache={flips: true, shard_images: 4, batch: 2, scale_samples: 50, scale_per: channel}",
    "sample={count: 20, cfg: [2], batch: 4, preview_images: 4}",
    "evaluate={extractor: digits, metrics: [fid, inception_score], half_half_splits: 1}",
]
MAR = [
    "model.mar={width: 16, heads: 2, encoder_depth: 1, decoder_depth: 1, buffer_tokens: 2, head_width: 16, head_depth: 1, pairs: 2}",
    "model.mar.sampler={ar_steps: 2, head_steps: 2}",
]
SIT = ["model.sit={size: '', width: 16, heads: 2, depth: 2, pairs: 2}", "model.sit.sampler.steps=2"]
WORDS = {
    "flowhead": ["channels=4", "width=16", "depth=1", "pairs=2", "group_size=4", *TRAIN],
    "ae": [
        "data.size=16",
        "data.crop=random_resized",
        "data.flip=true",
        "model={image_size: 16, patch_size: 8, tokens: 2, channels: 4}",
        f"model.encoder={VIT}",
        f"model.decoder={VIT}",
        "regulariser.flow={weight: 0.01, pairs: 2, group_size: 2}",
        "loss.adversarial={weight: 0.1, start_step: 12, ramp_steps: 4, lecam_weight: 0.01, consistency_weight: 1}",
        "loss.adversarial.discriminator={name: patchgan, patchgan: {width: 4, layers: 1}}",
        "loss.adversarial.optim.lr=1e-3",
        "monitor={images: 8, picture_images: 4}",
        "evaluate.metrics=[fidelity]",
        "evaluate.extractor=",
        *TRAIN,
    ],
    "simflow": [
        "data.size=16",
        "data.crop=random_resized",
        "data.flip=true",
        "model={image_size: 16, patch_size: 8, tokens: 2, channels: 4}",
        f"model.encoder={VIT}",
        f"model.decoder={VIT}",
        "regulariser.simflow.flow={width: 12, heads: 2, depths: [1, 1], dropout: 0.1}",
        "monitor={images: 8, picture_images: 4, metrics: [fidelity]}",
        "evaluate.metrics=[fidelity]",
        "evaluate.extractor=",
        *TRAIN,
    ],
    "sit": [*GENERATION, *SIT, *TRAIN],
} | dict.fromkeys(("cache", "mar", "generate", "evaluate", "scale"), [*GENERATION, *MAR, *TRAIN])
WORDS["distil"] = [*GENERATION, *MAR, "distil={jumps: 3, solver_steps: 4}", *TRAIN]
SECTIONS = {"distil": "distil."}  # of a config that holds the stage's train and optim, where these are not its own
NEEDS = {
    "flowhead": [],
    "ae": ["flowhead"],
    "cache": ["ae"],
    "mar": ["ae", "latents"],
    "sit": ["ae", "latents"],
    "distil": ["ae", "latents", "mar/generator"],
    "generate": ["ae", "mar/generator"],
    "evaluate": ["mar/samples"],
    "simflow": [],
}
TRAINED = {
    "flowhead": "prior",
    "ae": "autoencoder",
    "mar": "generator",
    "distil": "map",
    "sit": "generator",
    "simflow": "autoencoder",
}
STAGES = list(NEEDS)


Trial = tuple[str, str | None]  # what was tried, with what repeats it, and what is wrong with the outcome


class CannotTry(Exception):
    """This machine has not what the row needs."""


@dataclass
class Reference:
    """An uninterrupted run."""

    hash: str
    log: list[dict[str, Any]]
    seconds: float


@dataclass
class Soak:
    """Where things lie, how much is tried, and the random instants.

    Args:
        folder: of everything.
        quick: a handful of each.
        seed: of the random instants.
        share: of the long form's trials, for a machine with less time.
        stages: that the rows try which go from stage to stage.
    """

    folder: Path
    quick: bool
    seed: int
    share: float = 1.0
    stages: tuple[str, ...] = tuple(STAGES)
    references: dict[tuple[str, int, tuple[str, ...]], Reference] = field(default_factory=dict)
    kept: dict[tuple, Any] = field(default_factory=dict)  # what several trials compare with
    count: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.base, self.data = self.folder / "base", self.folder / "data"
        self._make_data()

    @property
    def trained(self) -> list[str]:
        """Those of its stages that train."""
        return [name for name in TRAINED if name in self.stages]

    def few(self, many: int, quick: int) -> int:
        """How many: ``many`` or the share of it, or ``quick`` in the quick form."""
        return quick if self.quick else max(1, quick, round(many * self.share))

    def _make_data(self) -> None:
        draw = np.random.default_rng(0)
        for number in range(24):
            file = self.data / "images" / f"class{number % 2}" / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (18, 20, 3), dtype=np.uint8)).save(file)
        np.save(self.data / "features.npy", draw.standard_normal((50, 12)).astype(np.float32) * 2 + 1)

    def build(self) -> Path:
        """The run folder with every stage complete, made once."""
        if not (self.base / "mar" / "evaluation.json").is_file():
            for name in ("flowhead", "ae", "cache", "scale", "mar", "distil", "generate", "evaluate"):
                start = time.perf_counter()
                process = self.start(name, self.base)
                if process.wait() != 0:
                    raise SystemExit(f"the stage '{name}' does not even run undisturbed:\n{process.said()}")
                if name in STAGES:
                    seconds = time.perf_counter() - start
                    self.references[name, 1, ()] = Reference(
                        result_hash(name, self.base), log_of(name, self.base), seconds
                    )
        return self.base

    def words(self, name: str, run: Path) -> list[str]:
        source = (
            ["target.source=file", f"target.file.path={self.data / 'features.npy'}"]
            if name == "flowhead"
            else ["data.source=folder", f"data.path={self.data / 'images'}"]
        )
        return [*source, *WORDS[name], f"run_dir={run}"]

    def start(
        self,
        name: str,
        run: Path,
        *words: str,
        instrument: Instrument = nothing,
        ranks: int = 1,
        data: Path | None = None,
    ) -> Process:
        """Start a stage's command in the folder ``run``."""
        self.count += 1
        output = self.folder / "output" / f"{self.count:05d}_{name}"
        own = [f"data.path={data}"] if data else []
        return command(name, self._placed(name, [*self.words(name, run), *own, *words]), output, instrument, ranks)

    def _placed(self, name: str, words: list[str]) -> list[str]:
        """Words with the options of training where the stage's config has them."""
        section = SECTIONS.get(name, "")
        return [f"{section}{word}" if word.startswith(("train", "optim")) else word for word in words]

    def fresh(self, name: str, *more: str) -> Path:
        """A new run folder with what the stage needs."""
        self.build()
        self.count += 1
        run = self.folder / "runs" / f"{self.count:05d}_{name}"
        run.mkdir(parents=True)
        for needed in [*NEEDS[name], *more]:
            shutil.copytree(self.base / needed, run / needed)
        return run

    def reference(self, name: str, ranks: int = 1, words: tuple[str, ...] = ()) -> Reference:
        """What an uninterrupted run leaves, of ``ranks`` processes."""
        self.build()
        if (name, ranks, words) not in self.references:
            run, start = self.fresh(name), time.perf_counter()
            process = self.start(name, run, *words, ranks=ranks)
            if process.wait() != 0:
                raise SystemExit(f"'{name}' in {ranks} processes does not even run undisturbed:\n{process.said()}")
            seconds = time.perf_counter() - start
            self.references[name, ranks, words] = Reference(result_hash(name, run), log_of(name, run), seconds)
            shutil.rmtree(run)
        return self.references[name, ranks, words]

    def finish(self, name: str, run: Path, *words: str, ranks: int = 1) -> str | None:
        """Run the same command once more; what is wrong with what it leaves, against an uninterrupted run."""
        process = self.start(name, run, *words, ranks=ranks)
        if process.wait() != 0:
            return f"the same command again ends with {process.code}: {process.said()[-400:]}"
        wanted = self.reference(name, ranks, words)
        if result_hash(name, run) != wanted.hash:
            return "another result than the uninterrupted run's"
        if log_of(name, run) != wanted.log:
            return "another log than the uninterrupted run's"
        if remains := leftovers(run):
            return f"left behind: {', '.join(remains)}"
        return None


def leftovers(run: Path) -> list[str]:
    """Locks and temporary files."""
    found = [p for p in run.rglob("*") if p.name.startswith(".") or p.suffix == ".tmp"]
    return sorted(str(p.relative_to(run)) for p in found)


def stage_folder(name: str, run: Path) -> Path:
    """Where the stage writes."""
    folders = {"cache": "latents", "distil": "mar/flow_map", "generate": "mar", "evaluate": "mar", "simflow": "ae"}
    return run / folders.get(name, name)


def steps_saved(name: str, run: Path) -> list[int]:
    """Steps of the whole checkpoints."""
    manifests = (stage_folder(name, run) / "checkpoints").glob("step_*/manifest.json")
    return sorted(int(p.parent.name[5:]) for p in manifests)


def log_of(name: str, run: Path) -> list[dict[str, Any]]:
    """The rows of a trained stage's log, but for its timings."""
    rows = read_log(stage_folder(name, run) / "log.jsonl") if name in TRAINED else []
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in rows]


def checkpoint_hash(folder: Path) -> str:
    """Every entry of a checkpoint: names, dtypes, shapes and raw bytes, or values."""
    tensors, plain = {}, []
    for file in sorted(folder.iterdir()):
        if file.suffix == ".json":
            continue
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)
        for name, value in named_entries(state):
            if isinstance(value, torch.Tensor):
                tensors[f"{file.stem}.{name}"] = value
            else:
                plain.append(f"{file.stem}.{name} {value!r}")
    return tensors_fingerprint(tensors) + hashlib.sha256("\n".join(sorted(plain)).encode()).hexdigest()[:16]


def result_hash(name: str, run: Path) -> str:
    """What the stage leaves, whatever files it lies in."""
    folder = stage_folder(name, run)
    if name in TRAINED:
        last = folder / "checkpoints" / f"step_{STEPS:08d}"
        made = tensors_fingerprint(load_file(folder / TRAINED[name] / "model.safetensors")) + checkpoint_hash(last)
        beside = run / name / "generator" / "model.safetensors"
        return made + (tensors_fingerprint(load_file(beside)) if name == "simflow" else "")
    if name == "cache":
        manifest = json.loads((folder / "manifest.json").read_text())
        shards = [load_file(folder / entry["file"]) for entry in manifest["shards"]]
        tensors = {f"{n}.{key}": value for n, shard in enumerate(shards) for key, value in shard.items()}
        manifest.pop("statistics", None)
        return tensors_fingerprint(tensors) + hashlib.sha256(json.dumps(manifest).encode()).hexdigest()[:16]
    if name == "generate":
        with np.load(folder / "samples" / "cfg_2.npz", allow_pickle=False) as arrays:
            return hashlib.sha256(arrays["arr_0"].tobytes() + arrays["labels"].tobytes()).hexdigest()[:16]
    metrics = json.loads((folder / "evaluation.json").read_text())
    return hashlib.sha256(json.dumps(metrics).encode()).hexdigest()[:16]
