"""Row 18: input with something extra, missing, empty, renamed, duplicated or replaced is used rightly, or named, or refused.

A case does something with unusual input and says what must come of it. Others are added as a function in ``GROUPS``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flowprior.data.images import ImageConfig, open_images
from flowprior.distributed import World
from flowprior.flow.target_map import TargetMapSettings, fit_target_map
from flowprior.run.config import apply_overrides, build_config
from mar.config import MARStageConfig
from soak.evaluation import refusal
from soak.stages import Soak, Trial, stage_folder
from soak.wordless_cases import Case
from soak.wordless_images import folders, modes, replaced
from soak.wordless_places import in_archives, in_lists, replaced_in_archives
from tokenizer.config import AEConfig
from tokenizer.prior.targets.file import FileTarget
from tokenizer.prior.train_flowhead import FlowPriorConfig, check_target


def nothing_without_a_word(soak: Soak) -> Iterator[Trial]:
    """Every case of every group, and the commands on pictures, tables and folders that changed under them."""
    for number, case in enumerate(case for group in GROUPS for case in group()):
        folder = soak.folder / "wordless" / f"{number:03d}"
        folder.mkdir(parents=True)
        yield case.label, case.problem(folder)
        shutil.rmtree(folder)
    yield from commands(soak)


def words() -> Iterator[Case]:
    """Words of a command line."""
    texts = [
        "/d/set #2", "#2", "2026-01-02", "2001-99-99", "no", "true", "null", "~", "1e3", "010", "0x10", "1:30", "1.50", "[a]", "[a", "{a}", "a: b",
        "'a'", "*a", "&a b", "!a", "- a", "a=b", " a ", "", "%", "@a", "`",
    ]  # fmt: skip
    for name, config in (("data.path", AEConfig), ("target.file.path", FlowPriorConfig)):
        for text in texts:
            source = ["data.source=files"] * (name == "data.path")
            yield Case(
                f"{name}={text}",
                lambda folder, c=config, n=name, t=text, s=source: _option(c, n, *s, f"{n}={t}"),
                used=text,
            )
    for word, value in (
        ("cache.hold=no", "no"),
        ("train.steps=010", 10),
        ("train.steps=1e3", 1000),
        ("optim.lr=1e-4", 1e-4),
    ):
        yield Case(word, lambda folder, w=word: _option(MARStageConfig, w.split("=")[0], w), used=value)
    for word in (
        "train.steps=5 #3",
        "train.steps=1:30",
        "train.steps=0x10",
        "train.steps=yes",
        "sample.cfg=[1] #2",
        "sample.cfg=1",
        "optim.lr=1 2",
    ):
        yield Case(
            word, lambda folder, w=word: _option(MARStageConfig, w.split("=")[0], w), refused=(word.split("=")[0],)
        )


def _option(config: type, name: str, *words: str) -> Any:
    made = build_config(config, apply_overrides({}, list(words)))
    for part in name.split("."):
        made = getattr(made, part)
    return made


def tables() -> Iterator[Case]:
    """Feature tables in files: what is not finite, too short, of another rank, duplicated or of another kind."""
    draw = np.random.default_rng(0)
    plain = draw.standard_normal((60, 4)).astype(np.float32)

    def with_value(value: float, row: int, kind: type = np.float32) -> np.ndarray:
        table = plain.astype(kind)
        table[row, 1] = value
        return table

    yield Case("a table as it should be", _table(plain), used=(60, 4, 1))
    for label, value, kind in (
        ("NaN", np.nan, np.float32),
        ("infinity", np.inf, np.float16),
        ("1e39", 1e39, np.float64),
    ):
        for row in (0, 31, 59):
            yield Case(
                f"{label} in row {row}",
                _table(with_value(value, row, kind)),
                refused=("1 of its 60", f"first in row {row}"),
            )
    for count in (1, 2, 4):
        yield Case(f"{count} rows", _table(plain[:count]), refused=(f"has {count} rows", "5 rows or more"))
    yield Case("5 rows", _table(plain[:5]), used=(5, 4, 1))
    yield Case("images, tokens, channels", _table(plain.reshape(6, 10, 4)), used=(60, 4, 10))
    yield Case(
        "images, channels, height, width", _table(plain.reshape(6, 4, 2, 5)), refused=("(images, tokens, channels)",)
    )
    yield Case("a vector", _table(plain[:, 0]), refused=("(N, d)",))
    yield Case("whole numbers", _table(plain.astype(np.int64)), refused=("floating-point",))
    yield Case("no rows", _table(plain[:0]), refused=("(N, d)",))
    yield Case("no channels", _table(plain[:, :0]), refused=("(N, d)",))
    yield Case("rows of one image that do not fit", _table(plain, rows_per_sample=7), refused=("no multiple of 7",))
    yield Case(
        "constant",
        lambda folder: fit_target_map(torch.ones(9, 3), TargetMapSettings(2)),
        refused=("constant",),
        error=ValueError,
    )
    yield Case("a sparse tensor", _saved({"a": torch.eye(6).to_sparse()}), refused=("t.pt", "dense"))
    yield Case("an extra tensor", _saved({"a": torch.ones(6, 2), "b": torch.ones(6, 2)}), refused=("t.pt", "several"))
    yield Case("another name", _saved({"a": torch.ones(6, 2)}, "b"), refused=("t.pt", "no array 'b'"))


def _table(table: np.ndarray, **options: Any) -> Callable[[Path], tuple[int, ...]]:
    def act(folder: Path) -> tuple[int, ...]:
        np.save(folder / "t.npy", table)
        target = FileTarget(path=str(folder / "t.npy"), **options).load(None)
        check_target(target, World())
        return (*target.features.shape, target.rows_per_sample)

    return act


def _saved(tensors: dict[str, torch.Tensor], key: str = "") -> Callable[[Path], object]:
    def act(folder: Path) -> object:
        torch.save(tensors, folder / "t.pt")
        return FileTarget(path=str(folder / "t.pt"), key=key).load(None)

    return act


GROUPS = [modes, folders, replaced, in_archives, in_lists, replaced_in_archives, words, tables]


def commands(soak: Soak) -> Iterator[Trial]:
    """The stages' commands, whose images and targets are changed between two runs of the same words."""
    yield "pictures replaced, caching", _replaced(soak, "cache", "latents", "another input (images)")
    if soak.quick:
        return
    yield "pictures replaced, training", _replaced(soak, "ae", "ae", "another data")
    for label, table in (("three rows", np.eye(3, 12)), ("NaN", np.where(np.eye(50, 12) > 0, np.nan, 1.0))):
        run = soak.fresh("flowhead")
        np.save(soak.folder / "odd.npy", table.astype(np.float32))
        process = soak.start("flowhead", run, f"target.file.path={soak.folder / 'odd.npy'}")
        yield (
            f"a target of {label}",
            refusal(process, "odd.npy")
            or ("it began all the same" if stage_folder("flowhead", run).joinpath("config.yaml").exists() else None),
        )
        shutil.rmtree(run)
    yield "a folder without images beside the classes", _empty_class(soak)
    yield "a cache of an earlier version", _earlier(soak)


def _bmps(folder: Path, seed: int) -> Path:
    for number in range(24):
        file = folder / f"class{number % 2}" / f"{number:02d}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng([seed, number])
        Image.fromarray(draw.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


def _replaced(soak: Soak, name: str, stage: str, named: str) -> str | None:
    """One stage twice, on other pictures of the same names and lengths: the second is refused."""
    run, images = soak.fresh(name), _bmps(soak.folder / "bmps", 0)
    try:
        for expected in (0, 0, 2):
            process = soak.start(name, run, data=images)
            if expected:
                return refusal(process, named, str(run / stage))
            if process.wait() != 0:
                return process.said()[-300:]
            if (stage_folder(name, run) / "seen").exists():
                _bmps(images, 1)
            (stage_folder(name, run) / "seen").touch()
    finally:
        shutil.rmtree(images)
        shutil.rmtree(run)
    return "never refused"


def _empty_class(soak: Soak) -> str | None:
    run, images = soak.fresh("cache"), _bmps(soak.folder / "bmps", 0)
    (images / "annotations").mkdir()
    problem = refusal(soak.start("cache", run, data=images), str(images), "annotations")
    shutil.rmtree(images)
    shutil.rmtree(run)
    return problem


def _earlier(soak: Soak) -> str | None:
    """A manifest with the fingerprint of names and lengths is accepted, in one line that names it."""
    run = soak.fresh("cache", "latents")
    manifest = run / "latents" / "manifest.json"
    kept = json.loads(manifest.read_text())
    kept["origin"]["images"] = open_images(ImageConfig("folder", str(soak.data / "images"), 16)).fingerprint().before
    manifest.write_text(json.dumps(kept))
    process = soak.start("cache", run)
    code, lines = process.wait(), process.said().splitlines()
    said = [line for line in lines if "note:" in line and "whose labels come from" not in line]
    shutil.rmtree(run)
    return (
        None
        if code == 0 and len(said) == 1 and str(manifest) in said[0]
        else f"exit code {process.code}: {process.said()[-300:]}"
    )
