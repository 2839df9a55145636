"""Rows 8 and 16: what later stages are given that is stale, damaged, short or another's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flowprior.data.image_archive import write_image_archive
from soak.processes import Process
from soak.sizes import TOLERANCE, samples
from soak.stages import Soak, Trial, stage_folder


def latent_cache(soak: Soak) -> Iterator[Trial]:
    """Damage a cache, or what it was made from, and train on it; damage an interrupted one, and go on."""
    base = soak.build()
    shards = sorted((base / "latents").glob("*.safetensors"))
    for shard in shards if not soak.quick else shards[:1]:
        for label, damage in _damages(soak, shard.stat().st_size):
            yield (
                f"{shard.name} {label}",
                _refused(soak, "mar", lambda run, s=shard, d=damage: d(run / "latents" / s.name)),
            )
    yield "another encoder, training", _refused(soak, "mar", _other_encoder)
    yield "another encoder, caching", _refused(soak, "cache", _other_encoder, more=["latents"])
    changes = {
        "another crop": ["cache.flips=false", "cache.ten_crop=true"],
        "another dtype": ["cache.dtype=float32"],
        "no mirrored views": ["cache.flips=false"],
    }
    for label, words in changes.items():
        for name in ("mar", "cache"):
            more = ["latents"] if name == "cache" else []
            yield f"{label}, {name}", _refused(soak, name, lambda run: run / "latents", words, more)
    for kind in ("truncated", "not an image", "one byte changed"):
        yield f"an image {kind}", _bad_image(soak, kind)
    for label, damage in _damages(soak, shards[0].stat().st_size):
        yield f"interrupted, a shard {label}", _interrupted(soak, damage)


def _damages(soak: Soak, size: int) -> list[tuple[str, Callable[[Path], Path]]]:
    cuts = sorted(soak.random.sample(range(size), soak.few(6, 2)))
    flips = sorted(soak.random.sample(range(size), soak.few(12, 2)))
    made = [(f"cut to {cut} bytes", lambda file, cut=cut: _cut(file, cut)) for cut in cuts]
    made += [(f"bit {at % 8} of byte {at} flipped", lambda file, at=at: _flip(file, at)) for at in flips]
    return [*made, ("missing", lambda file: (file.unlink(), file)[1])]


def _cut(file: Path, size: int) -> Path:
    file.write_bytes(file.read_bytes()[:size])
    return file


def _flip(file: Path, at: int) -> Path:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << at % 8
    file.write_bytes(data)
    return file


def _other_encoder(run: Path) -> Path:
    from tokenizer.autoencoder import Autoencoder

    other = Autoencoder.load(run / "ae" / "autoencoder")
    next(other.parameters()).data.add_(1)
    other.save(run / "ae" / "autoencoder")
    return run / "latents"


def _refused(
    soak: Soak, name: str, damage: Callable[[Path], Path], words: Sequence[str] = (), more: Sequence[str] = ()
) -> str | None:
    """What is wrong unless the command names the file that ``damage`` returns, in one line, before its first step."""
    run = soak.fresh(name, *more)
    file = damage(run)
    process = soak.start(name, run, *words)
    problem = refusal(process, str(file))
    if problem is None and name == "mar" and (run / "mar").exists():
        problem = "it began all the same"
    shutil.rmtree(run)
    return problem


def refusal(process: Process, *named: str) -> str | None:
    """What is wrong with how a command refuses: one line with ``error:`` that names these, exit code 2, no traceback."""
    code, said = process.wait(), process.said()
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if code != 2 or len(lines) != 1 or "Traceback" in said:
        return f"exit code {code}: {said[-400:]}"
    missing = [word for word in named if word not in lines[0]]
    return f"{missing} not named: {lines[0]}" if missing else None


def _bad_image(soak: Soak, kind: str) -> str | None:
    run, images = soak.fresh("cache"), soak.folder / "bad_images"
    shutil.copytree(soak.data / "images", images)
    file = images / "class1" / "07.png"
    data = file.read_bytes()
    changed = {
        "truncated": data[:-200],
        "not an image": b"GIF89a" + data,
        "one byte changed": data[:300] + bytes([data[300] ^ 1]) + data[301:],
    }
    file.write_bytes(changed[kind])
    problem = refusal(soak.start("cache", run, data=images), str(file))
    if problem is None and (run / "latents" / "manifest.json").exists():
        problem = "there is a manifest"
    if problem is None:
        file.write_bytes(data)
        process = soak.start("cache", run, data=images)
        problem = None if process.wait() == 0 else f"mended, it does not go on: {process.said()[-300:]}"
    shutil.rmtree(images)
    shutil.rmtree(run)
    return problem


def _interrupted(soak: Soak, damage: Callable[[Path], Path]) -> str | None:
    """Some shards of a cache without its manifest, one of them damaged: the next run makes that one anew."""
    run = soak.fresh("cache", "latents")
    (run / "latents" / "manifest.json").unlink()
    shards = sorted((run / "latents").glob("*.safetensors"))
    shards[-1].unlink()
    damage(shards[0])
    problem = soak.finish("cache", run)
    shutil.rmtree(run)
    return problem


def evaluation_input(soak: Soak) -> Iterator[Trial]:
    """Sets of samples that are short, stale, of another size or not images; uneven last batches; one process against two."""
    npz = "mar/samples/cfg_2.npz"
    cases: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
        "stale set": (_stale, [], npz),
        "short set": (lambda run: _short(run / npz), [], npz),
        "set without its note": (lambda run: (run / npz).with_suffix(".json").unlink(), [], "cfg_2.json"),
        "set cut": (lambda run: _cut(run / npz, 2000), [], npz),
        "set with a bit flipped": (lambda run: _flip(run / npz, 4000), [], npz),
        "set of nobody's options": (lambda run: None, ["sample.seed=5"], npz),
        "no set": (lambda run: (run / npz).unlink(), [], npz),
        "another count": (lambda run: None, ["sample.count=21"], "cfg_2"),
        "theirs is short": (lambda run: samples(run, 12), ["evaluate.samples={run}/theirs.npz"], "theirs.npz"),
        "theirs is cut": (
            lambda run: _cut(samples(run, 20), 3000),
            ["evaluate.samples={run}/theirs.npz"],
            "theirs.npz",
        ),
        "reference without moments": (lambda run: None, ["evaluate.reference={run}/ref.npz"], "ref.npz"),
        "reference of another extractor": (_reference, ["evaluate.reference={run}/ref.npz"], "ref.npz"),
        "a folder that is short": (lambda run: _folder(run, 19), ["evaluate.samples={run}/pngs"], "pngs"),
        "a folder with a bad image": (
            lambda run: _folder(run, 20, bad=True),
            ["evaluate.samples={run}/pngs"],
            "00003.png",
        ),
    }
    for label, (damage, words, named) in cases.items():
        run = soak.fresh("evaluate", "mar/generator", "ae")
        damage(run)
        process = soak.start("evaluate", run, *(word.format(run=run) for word in words))
        yield label, refusal(process, named)
        shutil.rmtree(run)
    for count in (2, 3, 129, 130, 257) if not soak.quick else (3, 130):
        yield f"{count} images, 1 and 2 processes", _uneven(soak, count)


def _stale(run: Path) -> None:
    file = run / "mar" / "generator" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fingerprint": "0" * 16}))


def _short(file: Path) -> None:
    with np.load(file, allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"][:-1], arrays["labels"][:-1]
    part = file.with_name("part.npy")
    np.save(part, images)
    write_image_archive(file, [part], labels)
    part.unlink()


def _reference(run: Path) -> None:
    np.savez(run / "ref.npz", mu=np.zeros(7), sigma=np.eye(7), extractor=np.str_("another"))


def _folder(run: Path, count: int, bad: bool = False) -> None:
    for number in range(count):
        file = run / "pngs" / "all" / f"{number:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 3 * number, np.uint8)).save(file)
        if bad and number == 3:
            _cut(file, 40)


def _uneven(soak: Soak, count: int) -> str | None:
    results = []
    for ranks in (1, 2):
        run = soak.fresh("evaluate")
        words = [f"evaluate.samples={samples(run, count)}", f"sample.count={count}", "evaluate.metrics=[fid]"]
        process = soak.start("evaluate", run, *words, "evaluate.half_half_splits=0", ranks=ranks)
        if process.wait() != 0:
            return process.said()[-300:]
        results.append(json.loads((stage_folder("evaluate", run) / "evaluation_theirs.json").read_text()))
        shutil.rmtree(run)
    one, two = results
    if one["protocol"] != two["protocol"] or one["protocol"]["samples"]["theirs.npz"]["count"] != count:
        return "another count or protocol"
    a, b = (result["metrics"]["theirs.npz"]["fid"] for result in results)
    return None if abs(a - b) <= TOLERANCE * abs(a) else f"FID {b} in place of {a}"
