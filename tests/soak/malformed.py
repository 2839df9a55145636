"""Row 10: configs, checkpoints, caches, image folders and command lines that a person got wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from image_sets import pictures, write_shards, write_tar, write_zip
from soak.evaluation import refusal
from soak.instruments import snapshot
from soak.stages import Soak, Trial, stage_folder, steps_saved

Damage = Callable[[Path], object]


class Case(NamedTuple):
    """A mistake: which command meets it, how it is made in a run folder, with which words, and what the answer must name."""

    command: str
    damage: Damage
    words: list[str]
    named: str
    begun: bool = False  # whether the stage's own folder holds a run


def malformed(soak: Soak) -> Iterator[Trial]:
    """One line that names the mistake, exit code 2, no traceback, and the run folder as it was."""
    cases = [
        *command_lines(),
        *presets(soak),
        *checkpoints(),
        *run_folders(),
        *caches(),
        *image_folders(soak),
        *shards(soak),
        *features(soak),
    ]
    for number, case in enumerate(cases if not soak.quick else cases[:: len(cases) // 12]):
        run = soak.fresh(case.command, *([case.command] if case.begun else []))
        case.damage(run)
        before = snapshot(run)
        process = soak.start(case.command, run, *(word.replace("{run}", str(run)) for word in case.words))
        problem = refusal(process, case.named.replace("{run}", str(run)))
        if problem is None and snapshot(run) != before:
            changed = {k for k, v in snapshot(run).items() ^ before.items()}
            problem = f"the run folder changed: {sorted(changed)[:4]}"
        yield f"case {number}, {case.command} {' '.join(case.words)[:80]}: {case.named}", problem
        shutil.rmtree(run)


def nothing(run: Path) -> None:
    """The mistake is in the words alone."""


def command_lines() -> list[Case]:
    """Options that do not exist, are of another type, out of range, or do not go together."""
    words = {
        "flowhead": {
            "optim.Ir=1e-3": "optim.lr", "trian.steps=3": "train", "train.steps=0": "steps", "train.steps=many": "train.steps",
            "train.steps=1.5": "train.steps", "train.steps=": "train.steps", "train.steps=[1]": "train.steps",
            "train.global_batch=15": "15", "train.non_finite_steps=0": "non_finite_steps", "optim.lr=0": "lr",
            "optim.lr=nan": "lr", "optim.betas=[1]": "betas", "optim.betas=[0.9,1.5]": "betas", "optim.ema_decay=1": "ema_decay",
            "channels=0": "channels", "held_out=1": "held_out", "projection=pcb": "projection", "group_size=5": "group_size",
            "target.source=nowhere": "nowhere", "times.distribution=normal": "distribution", "width=-3": "width",
            "bogus": "bogus", "--bogus": "bogus", "=3": "=3", "train=3": "train", "train.steps=[": "train.steps",
            "optim.lr.x=3": "optim.lr", "--preset": "preset", "--preset=none_such": "none_such", "--preset=none.yaml": "none.yaml",
            "target.file.key=other": "other", "train.seed=x": "train.seed", "optim.warmup_steps=-1": "warmup",
        },
        "ae": {
            "data.size=24": "24", "data.size=4": "8 pixels", "model.patch_size=7": "7", "model.tokens=0": "tokens",
            "model.channels=7": "channels=7", "model.encoder.heads=5": "heads", "regulariser.name=bogus": "bogus",
            "regulariser.name=flow+flow": "flow", "regulariser.flow.wieght=1": "weight", "loss.pixel=l3": "l1",
            "loss.pixel_weight=-1": "weights", "loss.adversarial.kind=wgan": "kind", "loss.adversarial.augment=[blur]": "augment",
            "loss.adversarial.discriminator.name=none": "none", "data.crop=left": "crop", "data.min_area=0": "min_area",
            "data.path=/none": "/none", "prior=/none": "/none", "monitor.images=0": "images", "evaluate.metrics=[speed]": "speed",
            "evaluate.extractor=vgg": "vgg", "train.eval_steps=-1": "eval_steps", "train.precision=fp8": "precision",
            "held_out=/none": "/none", "data.source=web": "source",
        },
        "mar": {
            "model.mar.width=15": "width", "model.mar.heads=0": "at least 1", "model.mar.size=mar_tiny": "mar_tiny",
            "model.mar.mask_ratio_min=2": "mask_ratio", "model.mar.sampler.solver=rk9": "solver", "sample.count=0": "count",
            "sample.cfg=[]": "cfg", "sample.cfg=[-1]": "cfg", "cache.dtype=int8": "dtype", "cache.flips=3": "flips",
            "evaluate.reference=x": "reference", "evaluate.metrics=[speed]": "speed", "model.name=dit": "dit", "autoencoder=/none": "/none",
            "data.size=32": "32", "cache.posterior=mode": "posterior", "train.keep_checkpoints=0": "keep_checkpoints",
        },
        "sit": {
            "model.mar.width=16": "model.sit", "model.mar.sampler.ar_steps=2": "model.sit", "model.sit.dropout=0.1": "dropout",
            "model.sit.sampler.head_steps=2": "sampler.steps", "model.name=mar": "one of sit", "model.sit.size=XXL": "XXL",
            "model.sit.width=15": "width", "model.sit.time_shift=0": "time_shift", "model.sit.block=modern": "lightning",
            "model.sit.prediction=noise": "velocity", "model.sit.sampler.solver=rk9": "solver", "model.sit.sampler.rtol=0": "rtol",
            "model.sit.sampler.last_step=1": "last_step", "model.sit.sampler.cfg_interval=[1,0]": "cfg_interval",
        },
        "generate": {"--classes=0": "--classes", "--n=x": "--n", "--cfg=high": "--cfg", "--out=x.gif": "--out", "sample.batch=0": "batch"},
        "cache": {"cache.posterior=moments": "posterior", "cache.enlarge=3": "enlarge", "cache.loader_workers=-1": "loader_workers"},
        "evaluate": {"evaluate.samples=/none.npz": "/none.npz", "evaluate.samples=here": "here", "evaluate.half_half_splits=-1": "half_half"},
    }  # fmt: skip
    return [
        Case(name, nothing, [word], named)
        for name, these in words.items()
        for word, named in these.items()
        if word != "--classes=0"
    ]


def presets(soak: Soak) -> list[Case]:
    """YAML files that are none."""
    folder = soak.folder / "presets"
    folder.mkdir(exist_ok=True)
    contents = {
        "list": b"- 1\n", "word": b"word\n", "open": b"train: [\n", "binary": b"\xff\xfe\x00", "date": b"train: 2001-99-99\n",
        "code": b"!!python/object/apply:os.getcwd []\n", "unknown": b"trainn: {steps: 3}\n", "deep": b"[" * 3000,
        "itself": b"train: &a [*a]\n", "base": b"base: nowhere\n", "number": b"base: 3\n", "tabs": b"train:\n\tsteps: 3\n",
    }  # fmt: skip
    for name, content in contents.items():
        (folder / f"{name}.yaml").write_bytes(content)
    (folder / "loop.yaml").write_bytes(b"base: loop.yaml\n")
    named = {"unknown": "trainn", "base": "nowhere"}
    cases = [
        Case("flowhead", nothing, [f"--preset={folder / name}.yaml"], named.get(name, f"{name}.yaml"))
        for name in [*contents, "loop"]
    ]
    return [*cases, Case("ae", nothing, [f"--preset={folder}"], str(folder))]


def _last(run: Path, name: str) -> Path:
    (stage_folder(name, run) / "result.json").unlink(missing_ok=True)
    return stage_folder(name, run) / "checkpoints" / f"step_{steps_saved(name, run)[-1]:08d}"


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _change(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _in_checkpoint(name: str, file: str, damage: Callable[[Path], object]) -> Damage:
    """Damage to a file of the newest checkpoint of a run that is not complete."""
    return lambda run: damage(_last(run, name) / file)


def _in_stage(name: str, file: str, damage: Callable[[Path], object]) -> Damage:
    """Damage to a file of the stage's own."""
    return lambda run: damage(stage_folder(name, run) / file)


def checkpoints() -> list[Case]:
    """The newest checkpoint of an unfinished run, damaged."""
    cases, manifest = [], "manifest.json"
    for name in ("flowhead", "ae", "mar"):
        for file in ("model.safetensors", "optimizer.pt", "ema.safetensors", "skipped.safetensors"):
            cases.append(Case(name, _in_checkpoint(name, file, _cut), [], f"step_00000040/{file}", True))
        gone = _in_checkpoint(name, "model.safetensors", Path.unlink)
        cases.append(Case(name, gone, [], "step_00000040/model.safetensors", True))
        for values in ({"format": 99}, {"step": 7}, {"files": []}, {"files": {}}):
            change = _in_checkpoint(name, manifest, lambda file, values=values: _change(file, **values))
            cases.append(Case(name, change, [], "step_00000040", True))
    return cases


def run_folders() -> list[Case]:
    """A run's own files, damaged or missing, and options that differ from those it began with."""
    cases = []
    for name, word in (("flowhead", "width=32"), ("ae", "optim.lr=0.5"), ("mar", "train.seed=3")):
        cases.append(Case(name, nothing, [word], word.split("=")[0], True))
        for file in ("config.yaml", "inputs.json"):
            cases.append(Case(name, _in_stage(name, file, Path.unlink), [], file, True))
            cases.append(Case(name, _in_stage(name, file, lambda f: f.write_bytes(b"{ a: [")), [], file, True))
        log = _in_checkpoint(name, "../../log.jsonl", lambda file: file.write_text("{\n{}\n"))
        cases.append(Case(name, log, [], "log.jsonl", True))
    return cases


def caches() -> list[Case]:
    """Latents, an autoencoder, a prior or a generator that are not what they should be."""
    manifest = "latents/manifest.json"
    changes: dict[str, dict[str, object]] = {
        "format": {"format": 9}, "count": {"count": 3}, "shards": {"shards": []}, "views": {"views": 0}, "tokens": {"tokens": "x"},
        "origin": {"origin": None}, "classes": {"num_classes": 1}, "statistics": {"statistics": {"scale": 0}}, "names": {"class_names": 3},
        "out": {"shards": [{"file": "../latents/latents-00000.safetensors", "rows": 4, "sha256": ""}]},
    }  # fmt: skip
    cases = [Case("mar", lambda run, v=v: _change(run / manifest, **v), [], "{run}/latents") for v in changes.values()]
    cases.append(Case("mar", lambda run: (run / manifest).unlink(), [], manifest))
    cases.append(Case("mar", lambda run: (run / manifest).write_text("[]"), [], manifest))
    for command, folder in (
        ("ae", "flowhead/prior"),
        ("mar", "ae/autoencoder"),
        ("generate", "mar/generator"),
        ("cache", "ae/autoencoder"),
    ):
        for file in ("config.json", "model.safetensors"):
            cases.append(Case(command, lambda run, p=f"{folder}/{file}": _cut(run / p), [], f"{folder}/{file}"))
        cases.append(Case(command, lambda run, p=f"{folder}/config.json": _change(run / p, format=77), [], folder))
        cases.append(Case(command, lambda run, p=f"{folder}/model.safetensors": (run / p).unlink(), [], folder))
    cases.append(
        Case("generate", lambda run: _change(run / "mar/generator/config.json", shape={}), [], "mar/generator")
    )
    return cases


def image_folders(soak: Soak) -> list[Case]:
    """Folders that are empty or hold what is no image."""
    folder = soak.folder / "no_images"
    if not folder.is_dir():
        (folder / "empty" / "class").mkdir(parents=True)
        (folder / "text" / "class").mkdir(parents=True)
        (folder / "text" / "class" / "a.png").write_text("no image")
    empty, text = folder / "empty", folder / "text"
    cases = [Case(name, nothing, [f"data.path={empty}"], str(empty)) for name in ("ae", "cache")]
    cases.append(Case("cache", nothing, [f"data.path={text}"], str(text / "class" / "a.png")))
    return [*cases, Case("cache", nothing, ["data.path="], "data.path")]


def shards(soak: Soak) -> list[Case]:
    """Tar and zip files, lists and tables with what is damaged, missing or ambiguous in them."""
    folder, images = soak.folder / "shards", pictures(12, size=(18, 20))
    if not folder.is_dir():
        for name in ("cut", "gone", "fine"):
            write_shards(folder / name, images, per_shard=4)
        _cut(folder / "cut" / "set-000001.tar")
        (folder / "gone" / "set-000001.tar").unlink()
        for file in ("cut.zip", "damaged.zip"):
            write_zip(folder / file, images)
        _cut(folder / "cut.zip")
        data = bytearray((folder / "damaged.zip").read_bytes())
        data[data.index(images[5].data) + 40] ^= 255
        (folder / "damaged.zip").write_bytes(data)
        write_tar(folder / "unlabelled.tar", [("0.png", images[0].data), ("0.cls", b"0"), ("1.png", images[1].data)])
        write_tar(folder / "page.tar", [("0.jpg", b"<html>not found</html>")])
        (folder / "list.csv").write_text("path,label\nnone.png,1\n")
        (folder / "twice.csv").write_text("path,label,class\nnone.png,1,2\n")
    named = {
        "cut": "cut/set-000001.tar", "gone/set-{000000..000002}.tar": "set-000001.tar", "cut.zip": "cut.zip", "damaged.zip": images[5].file,
        "unlabelled.tar": "1.png", "page.tar": "0.jpg", "list.csv": "none.png", "twice.csv": "label, class", "fine/{a..b}.tar": "{a..b}",
        "fine/set-*.zip": "set-*.zip", "fine/set-{000000..999999999}.tar": "000000..999999999",
    }  # fmt: skip
    cases = [Case("cache", nothing, [f"data.path={folder / place}"], word) for place, word in named.items()]
    missing = Case("cache", nothing, [f"data.path={folder / 'fine'}", "data.label_column=fine_label"], "fine_label")
    return [*cases, missing, Case("ae", nothing, [f"held_out={folder / 'cut'}"], "cut/set-000001.tar")]


def features(soak: Soak) -> list[Case]:
    """Target features in files that hold none."""
    folder = soak.folder / "no_features"
    folder.mkdir(exist_ok=True)
    np.save(folder / "ints.npy", np.ones((5, 3), dtype=np.int64))
    np.save(folder / "flat.npy", np.ones(5, dtype=np.float32))
    np.save(folder / "nan.npy", np.full((50, 12), np.nan, dtype=np.float32))
    np.savez(folder / "two.npz", a=np.ones((5, 3)), b=np.ones((5, 3)))
    (folder / "cut.npy").write_bytes((folder / "nan.npy").read_bytes()[:200])
    (folder / "words.txt").write_text("1 2 3")
    names = ("ints.npy", "flat.npy", "nan.npy", "two.npz", "cut.npy", "words.txt", "missing.npy")
    return [Case("flowhead", nothing, [f"target.file.path={folder / name}"], name) for name in names]
