"""Rows 3 and 4: a run that stops after any step goes on as if it had not, and needs everything that its checkpoint holds."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from flowprior.run.files import file_sha256
from flowprior.training.checkpoint import named_entries
from soak.instruments import until
from soak.stages import STEPS, Soak, Trial, checkpoint_hash, log_of, result_hash, stage_folder

DERIVED = ("lr",)  # entries of an optimiser that the loop sets anew in every step
MIDDLE = 23  # a step after the discriminator's start, between two evaluations


def recorded(soak: Soak, name: str) -> Path:
    """The run folder of an uninterrupted run that kept the checkpoint of every step."""
    run = soak.folder / "recorded" / name
    if not run.is_dir():
        made = soak.fresh(name)
        process = soak.start(name, made, *keeping_all())
        if process.wait() != 0:
            raise SystemExit(process.said())
        run.parent.mkdir(exist_ok=True)
        made.rename(run)
    return run


def keeping_all(*words: str) -> list[str]:
    """Words that keep the checkpoint of every step."""
    return ["train.checkpoint_steps=1", "train.keep_checkpoints=99", *words]


def stopped_after(soak: Soak, name: str, step: int) -> Path:
    """A run folder as one that was stopped after ``step`` steps leaves it."""
    whole, run = recorded(soak, name), soak.fresh(name)
    folder = stage_folder(name, run)
    folder.mkdir(exist_ok=True)
    for file in stage_folder(name, whole).iterdir():
        if file.is_file() and file.name != "result.json":
            shutil.copy(file, folder)
    kept = f"checkpoints/step_{step:08d}"
    shutil.copytree(stage_folder(name, whole) / kept, folder / kept)
    return run


def goes_on(soak: Soak, name: str, run: Path, *words: str) -> str | None:
    """What differs at any step, once the run in the folder has gone on to its end."""
    first = min(int(p.name[5:]) for p in (stage_folder(name, run) / "checkpoints").iterdir())
    process = soak.start(name, run, *keeping_all(*words))
    if process.wait() != 0:
        return f"exit code {process.code}: {process.said()[-400:]}"
    whole = recorded(soak, name)
    if log_of(name, run) != log_of(name, whole):
        rows = zip(log_of(name, run), log_of(name, whole))
        return f"another log from step {next((a['step'] for a, b in rows if a != b), 'the last')} on"
    for step in range(first, STEPS + 1):
        kept = f"checkpoints/step_{step:08d}"
        if checkpoint_hash(stage_folder(name, run) / kept) != checkpoint_hash(stage_folder(name, whole) / kept):
            return f"another state after step {step}"
    return None if result_hash(name, run) == result_hash(name, whole) else "another result"


def every_step(soak: Soak) -> Iterator[Trial]:
    """Stop after every step, in the warm-up, at ends of epochs, before and after the discriminator's start; and twice in a row."""
    for name in soak.trained if not soak.quick else ("ae",):
        for step in [1, 12, 13, 21] if soak.quick else range(1, STEPS, round(1 / soak.share)):
            for loaders in (0, 2) if step % 3 == 1 and (not soak.quick or step == 13) else (0,):
                run = stopped_after(soak, name, step)
                yield (
                    f"{name} from step {step}, {loaders} loaders",
                    goes_on(soak, name, run, f"train.loader_workers={loaders}"),
                )
                shutil.rmtree(run)
        for step in [13] if soak.quick else [3, 11, 19]:
            yield f"{name} stopped twice, after {step} and {step + 1}", _twice(soak, name, step)


def _twice(soak: Soak, name: str, step: int) -> str | None:
    """Go on for one step, stop, and go on."""
    run = stopped_after(soak, name, step)
    process = soak.start(name, run, *keeping_all())
    until(
        lambda: (stage_folder(name, run) / "checkpoints" / f"step_{step + 1:08d}" / "manifest.json").exists(), process
    )
    process.kill()
    problem = goes_on(soak, name, run)
    shutil.rmtree(run)
    return problem


def complete_state(soak: Soak) -> Iterator[Trial]:
    """Delete each entry of a checkpoint, and reset each to what a new run has, with checksums made to fit.

    Every file is tried, and of the entries within a third of the autoencoder's, which has all kinds, and an eighth of the others'.
    """
    for name in soak.trained if not soak.quick else ("ae",):
        whole = stage_folder(name, recorded(soak, name)) / "checkpoints"
        folder, fresh = whole / f"step_{MIDDLE:08d}", whole / "step_00000001"
        yield f"{name} delete 'step' of the manifest", _refused_without_step(soak, name)
        yield f"{name} reset 'step' of the manifest", _differs_from_step_0(soak, name)
        for file in sorted(folder.iterdir()):
            if file.name == "manifest.json":
                continue
            yield f"{name} delete {file.name}", _refused_without(soak, name, file.name)
            entries, first = dict(named_entries(read_state(file))), dict(named_entries(read_state(fresh / file.name)))
            chosen = [entry for entry in entries if entry and not _in_tuple(read_state(file), entry.split("."))]
            for number, entry in enumerate(chosen):
                between = round((3 if name == "ae" else 8) / soak.share)
                if number % (max(1, len(chosen) // 2) if soak.quick else between):
                    continue
                yield f"{name} delete {file.name} {entry}", _refused_without(soak, name, file.name, entry)
                if _moves(entries[entry], first.get(entry)) and entry.rsplit(".", 1)[-1] not in DERIVED:
                    problem = _differs_without(soak, name, file.name, entry, first.get(entry))
                    yield f"{name} reset {file.name} {entry}", problem


def _moves(value: Any, first: Any) -> bool:
    """Whether training changes the entry."""
    if isinstance(value, torch.Tensor):
        return not isinstance(first, torch.Tensor) or not torch.equal(value, first)
    return value != first


def read_state(file: Path) -> Any:
    return load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True)


def _refused_without(soak: Soak, name: str, file_name: str, entry: str = "") -> str | None:
    run = stopped_after(soak, name, MIDDLE)
    file = stage_folder(name, run) / "checkpoints" / f"step_{MIDDLE:08d}" / file_name
    if entry:
        edit(file, lambda state: _delete(state, entry.split(".")))
    else:
        file.unlink()
    process = soak.start(name, run, *keeping_all())
    code = process.wait()
    shutil.rmtree(run)
    if code == 2 and str(file) in process.said() and "Traceback" not in process.said():
        return None
    return f"exit code {code}: {process.said()[-300:]}"


def _differs_without(soak: Soak, name: str, file_name: str, entry: str, first: Any) -> str | None:
    run = stopped_after(soak, name, MIDDLE)
    file = stage_folder(name, run) / "checkpoints" / f"step_{MIDDLE:08d}" / file_name
    edit(file, lambda state: _reset(state, entry.split("."), first))
    problem = goes_on(soak, name, run)
    shutil.rmtree(run)
    if problem is None:
        return "nothing differs"
    return problem if problem.startswith("exit code") else None


def _refused_without_step(soak: Soak, name: str) -> str | None:
    run = stopped_after(soak, name, MIDDLE)
    file = stage_folder(name, run) / "checkpoints" / f"step_{MIDDLE:08d}" / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["step"]
    file.write_text(json.dumps(manifest))
    process = soak.start(name, run, *keeping_all())
    code = process.wait()
    shutil.rmtree(run)
    return None if code == 2 and str(file) in process.said() else f"exit code {code}: {process.said()[-300:]}"


def _differs_from_step_0(soak: Soak, name: str) -> str | None:
    """Data order, noise and schedule all follow from the step: set back, they are those of another step."""
    run = stopped_after(soak, name, MIDDLE)
    checkpoints = stage_folder(name, run) / "checkpoints"
    os.rename(checkpoints / f"step_{MIDDLE:08d}", checkpoints / "step_00000001")
    file = checkpoints / "step_00000001" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"step": 1}))
    problem = goes_on(soak, name, run)
    shutil.rmtree(run)
    return "nothing differs" if problem is None else None


def edit(file: Path, change: Any) -> None:
    """Change a checkpoint's file, and let its manifest vouch for the change, but for the list of its entries."""
    state = read_state(file)
    change(state)
    if file.suffix == ".safetensors":
        save_file(state, file)
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        file.write_bytes(buffer.getvalue())
    sign(file)


def sign(file: Path) -> None:
    """Make the manifest's size and checksum those of ``file``."""
    manifest_file = file.with_name("manifest.json")
    manifest = json.loads(manifest_file.read_text())
    manifest["files"][file.name] |= {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    manifest_file.write_text(json.dumps(manifest))


def _place(state: Any, path: list[str]) -> tuple[Any, Any]:
    """The container of a dotted entry and its key; names may hold dots themselves."""
    for length in range(len(path), 0, -1):
        name = ".".join(path[:length])
        keys = [k for k in (state if isinstance(state, dict) else range(len(state))) if str(k) == name]
        if keys and length == len(path):
            return state, keys[0]
        if keys:
            return _place(state[keys[0]], path[length:])
    raise KeyError(path)


def _in_tuple(state: Any, path: list[str]) -> bool:
    return isinstance(_place(state, path)[0], tuple)


def _delete(state: Any, path: list[str]) -> None:
    container, key = _place(state, path)
    del container[key]


def _reset(state: Any, path: list[str], first: Any) -> None:
    container, key = _place(state, path)
    value = container[key]
    if isinstance(first, torch.Tensor) and isinstance(value, torch.Tensor) and first.shape == value.shape:
        container[key] = first
    else:
        container[key] = torch.zeros_like(value) if isinstance(value, torch.Tensor) else type(value)()
