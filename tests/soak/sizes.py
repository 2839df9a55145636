"""Rows 5, 6 and 7: one process, two or three; fresh runs; nothing missing and nothing twice."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from flowprior.data.embedded import digit_images
from flowprior.data.image_archive import write_image_archive
from flowprior.data.order import MicroBatches
from soak.instruments import slow_steps, until
from soak.stages import STAGES, STEPS, Soak, Trial, log_of, result_hash, stage_folder, steps_saved

COUNTS, WORLDS = (1, 7, 64, 117), (1, 2, 3)
NO_DROPOUT = {"mar": ("model.mar.dropout=0",), "simflow": ("regulariser.simflow.flow.dropout=0",)}
TOLERANCE = 1e-5


def world_sizes(soak: Soak) -> Iterator[Trial]:
    """Two processes against one, and a run that changes their number twice."""
    if len(soak.stages) == len(STAGES):  # it is no stage's
        yield "sample ids of one process and of two", _same_samples()
    for name in soak.trained if not soak.quick else ("ae",):
        words = NO_DROPOUT.get(name, ())
        one, two = soak.reference(name, 1, words), soak.reference(name, 2, words)
        yield f"{name} 2 processes against 1", compare_losses(one.log, two.log)
        for first in (soak.random.randint(4, 30) for _ in range(soak.few(3, 1))):
            yield f"{name} 2, 1 and 2 processes, from step {first}", _changing(soak, name, first, words, one.log)


def _same_samples() -> str | None:
    def taken(world: int) -> list[Any]:
        streams = [iter(MicroBatches(24, 0, 16 // world, rank, world)) for rank in range(world)]
        return [sum((next(stream) for stream in streams), []) for _ in range(20)]

    return None if taken(1) == taken(2) == taken(4) else "other samples"


def _changing(soak: Soak, name: str, first: int, words: tuple[str, ...], wanted: list[dict[str, Any]]) -> str | None:
    run = soak.fresh(name)
    for ranks, step in ((2, first), (1, first + 5)):
        process = soak.start(name, run, *words, ranks=ranks, instrument=slow_steps(0.02))
        until(lambda step=step: max((row["step"] for row in log_of(name, run)), default=0) >= step, process, 60)
        process.send(signal.SIGTERM, rank=None if ranks == 1 else 0)
        process.wait()
    stopped = max(steps_saved(name, run), default=0)
    process = soak.start(name, run, *words, ranks=2)
    problem = None if process.wait() == 0 else f"exit code {process.code}: {process.said()[-300:]}"
    problem = problem or compare_losses(wanted, log_of(name, run))
    shutil.rmtree(run)
    return problem if not first < stopped < STEPS else problem


def compare_losses(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> str | None:
    """What differs by more than rounding."""
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if "loss" in a]
    if len(one) != len(other) or len(pairs) != STEPS:
        return f"{len(other)} rows of the log in place of {len(one)}"
    for a, b in pairs:
        if a["step"] != b["step"] or a["lr"] != b["lr"] or abs(a["loss"] - b["loss"]) > TOLERANCE * abs(a["loss"]):
            return f"step {a['step']}: loss {b['loss']} in place of {a['loss']}"
    return None


def fresh_runs(soak: Soak) -> Iterator[Trial]:
    """Fresh runs with 0, 1 and 2 loading processes."""
    for name in soak.trained if not soak.quick else ("ae",):
        wanted = soak.reference(name)
        for loaders in (0, 1, 2, 0, 2) if not soak.quick else (0, 2):
            run = soak.fresh(name)
            process = soak.start(name, run, f"train.loader_workers={loaders}")
            problem = None if process.wait() == 0 else f"exit code {process.code}: {process.said()[-300:]}"
            if problem is None and (result_hash(name, run), log_of(name, run)) != (wanted.hash, wanted.log):
                problem = "another result"
            yield f"{name} with {loaders} loading processes", problem
            shutil.rmtree(run)


def coverage(soak: Soak) -> Iterator[Trial]:
    """Caches and evaluations of N images by some processes."""
    for count in COUNTS if not soak.quick else (7, 64):
        images = some_images(soak, count)
        for world in WORLDS if not soak.quick else (2, 3):
            yield f"cache of {count} images, {world} processes", _cached(soak, images, count, world)
            if count > 1:
                yield f"evaluation of {count} images, {world} processes", _evaluated(soak, count, world)


def some_images(soak: Soak, count: int) -> Path:
    """A folder of ``count`` images, all different."""
    folder = soak.folder / "data" / f"images{count}"
    if not folder.is_dir():
        draw = np.random.default_rng(count)
        for number in range(count):
            file = folder / "all" / f"{number:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


def _cached(soak: Soak, images: Path, count: int, world: int) -> str | None:
    def cache(ranks: int) -> tuple[torch.Tensor | None, str]:
        run = soak.fresh("cache")
        words = ["cache.shard_images=5", "cache.batch=2", "cache.dtype=float32"]
        process = soak.start("cache", run, *words, data=images, ranks=ranks)
        if process.wait() != 0:
            return None, process.said()[-300:]
        manifest = json.loads((run / "latents" / "manifest.json").read_text())
        files = [run / "latents" / entry["file"] for entry in manifest["shards"]]
        rows = torch.cat([load_file(file)["latents"] for file in files])
        extra = {f.name for f in (run / "latents").glob("*.safetensors")} - {f.name for f in files}
        shutil.rmtree(run)
        return rows, f"{manifest['count']} {sorted(extra)}"

    one, told = _once(soak, ("cached", count), lambda: cache(1))
    if one is None:
        return told
    rows, told = (one, told) if world == 1 else cache(world)
    if rows is None or len(rows) != count or told != f"{count} []":
        return f"{told}, {None if rows is None else len(rows)} rows"
    if len(torch.unique(rows.flatten(1), dim=0)) != count:
        return "an image comes twice"
    return None if torch.equal(rows, one) else "other rows than one process caches"


def _once(soak: Soak, key: tuple, make: Callable[[], Any]) -> Any:
    if key not in soak.kept:
        soak.kept[key] = make()
    return soak.kept[key]


def samples(run: Path, count: int) -> Path:
    """A set of ``count`` images in the run's folder, as anybody's."""
    part, file = run / "part.npy", run / "theirs.npz"
    digits, labels = digit_images(16)
    np.save(part, digits[:count].permute(0, 2, 3, 1).contiguous().numpy())
    write_image_archive(file, [part], labels[:count].numpy())
    part.unlink()
    return file


def _evaluated(soak: Soak, count: int, world: int) -> str | None:
    def evaluate(ranks: int) -> Any:
        run = soak.fresh("evaluate")
        file = samples(run, count)
        words = [
            f"evaluate.samples={file}",
            f"sample.count={count}",
            "evaluate.half_half_splits=0",
            "evaluate.metrics=[fid]",
        ]
        process = soak.start("evaluate", run, *words, ranks=ranks)
        if process.wait() != 0:
            return process.said()[-300:]
        result = json.loads((stage_folder("evaluate", run) / "evaluation_theirs.json").read_text())
        shutil.rmtree(run)
        return result

    one = _once(soak, ("evaluated", count), lambda: evaluate(1))
    other = one if world == 1 else evaluate(world)
    if not isinstance(one, dict) or not isinstance(other, dict):
        return f"{one if isinstance(other, dict) else other}"
    if one["protocol"] != other["protocol"]:
        return "another protocol"
    a, b = (result["metrics"]["theirs.npz"]["fid"] for result in (one, other))
    return None if abs(a - b) <= TOLERANCE * abs(a) else f"FID {b} in place of {a}"
