"""Checkpoints of named objects. A checkpoint is a folder, and counts only once it carries its final name.

``step_00001200/`` holds one ``<name>.safetensors`` per object whose state is tensors alone, one ``<name>.pt`` (tensors and
plain values, read with ``weights_only=True``) per optimiser, and ``manifest.json`` with the step, and of every file the size, the SHA-256
and the names of the entries that it must hold.
"""

from __future__ import annotations

import io
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from flowprior.errors import NonFiniteLoss, UserError, one_line
from flowprior.run.archives import load_pt
from flowprior.run.files import (
    file_sha256,
    flush_to_disk,
    read_json,
    read_tensors,
    require_room,
    write_bytes,
    write_json,
    write_tensors,
)
from flowprior.training.optim import load_optimizer

FORMAT_VERSION = 2


class Stateful(Protocol):
    """What can be checkpointed: modules, optimisers, EMAs, or anything else with these two methods."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie.
        objects: everything that a resumed run needs, by name.
        keep: how many stay; older ones go once a newer one is in place.
    """

    def __init__(self, folder: Path, objects: dict[str, Stateful], keep: int = 2) -> None:
        self.folder, self.objects, self.keep = folder, objects, keep

    def steps(self) -> list[int]:
        """The steps at which there are whole checkpoints, ascending."""
        return sorted(
            int(p.parent.name[5:]) for p in self.folder.glob("step_*/manifest.json") if p.parent.name[5:].isdigit()
        )

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:08d}"

    def save(self, step: int) -> None:
        """Write the state of every object after ``step`` steps, then prune.

        Raises:
            UserError: the disk is full or not writable; the checkpoints that were there still are.
            NonFiniteLoss: there are values in the state that are not finite; nothing was written.
        """
        states = {name: item.state_dict() for name, item in self.objects.items()}
        for name, state in states.items():
            if bad := next((entry for entry, value in named_entries(state) if not _is_finite(value)), None):
                raise NonFiniteLoss(f"after step {step} '{bad}' of '{name}' is not finite, and was not saved")
        final = self.path(step)
        require_room(self.folder, sum(map(_size, states.values())), f"the checkpoint {final}")
        temporary = self.folder / f".{final.name}.tmp"
        try:
            self._save(step, states, temporary, final)
            self._prune()
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"cannot write the checkpoint {final} ({error}): make room, then run the same command again"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _save(self, step: int, states: dict[str, dict[str, Any]], temporary: Path, final: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {}
        for name, state in states.items():
            if all(isinstance(value, torch.Tensor) for value in state.values()):
                file = temporary / f"{name}.safetensors"
                write_tensors(file, state)
            else:
                file = temporary / f"{name}.pt"
                buffer = io.BytesIO()
                torch.save(state, buffer)
                write_bytes(file, buffer.getbuffer())
            entries = [entry for entry, _ in named_entries(state)]
            files[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file), "entries": entries}
        write_json(temporary / "manifest.json", {"format": FORMAT_VERSION, "step": step, "files": files})
        flush_to_disk(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        flush_to_disk(self.folder)

    def _prune(self) -> None:
        for old in self.steps()[: -self.keep]:
            going = self.folder / f".{self.path(old).name}.tmp"
            shutil.rmtree(going, ignore_errors=True)
            os.rename(self.path(old), going)  # so that no half of a checkpoint ever counts as one
            shutil.rmtree(going)

    def sweep(self) -> None:
        """Remove what a killed process left of checkpoints that it was writing or pruning."""
        for remains in self.folder.glob(".step_*.tmp"):
            shutil.rmtree(remains, ignore_errors=True)

    def load_latest(self, device: torch.device | str = "cpu") -> int:
        """Put the newest checkpoint's state into the objects.

        Returns:
            Its step, or 0 when there is none.

        Raises:
            UserError: a file is missing, changed, or of another model.
        """
        steps = self.steps()
        if not steps:
            return 0
        folder = self.path(steps[-1])
        remedy = f"delete {folder} to go on from the checkpoint before it"
        for file, state in self._read(folder, steps[-1], remedy, device).items():
            item = self.objects[file.stem]
            try:
                if isinstance(item, torch.optim.Optimizer):
                    load_optimizer(item, state)
                else:
                    item.load_state_dict(state)
            except Exception as error:  # modules, optimisers and others have each their own
                raise UserError(f"{file} does not fit this run ({one_line(error, limit=200)}): {remedy}") from error
        return steps[-1]

    def _read(self, folder: Path, step: int, remedy: str, device: torch.device | str) -> dict[Path, dict[str, Any]]:
        """The state in every file; each of them, and each entry in it, is there and unchanged."""
        manifest = read_json(folder / "manifest.json", "checkpoint manifest")
        files = manifest.get("files")
        if manifest.get("format") != FORMAT_VERSION or not isinstance(files, dict):
            raise UserError(f"the checkpoint {folder} is of another version of this code: {remedy}")
        if manifest.get("step") != step:
            raise UserError(f"{folder / 'manifest.json'} is of step {manifest.get('step')}: {remedy}")
        expected = {Path(name).stem for name in files}
        if expected != set(self.objects):
            differing = ", ".join(sorted(expected ^ set(self.objects)))
            raise UserError(f"the checkpoint {folder} and this run differ in what they save ({differing}): {remedy}")
        states = {}
        for name, entry in files.items():
            file = folder / Path(name).name
            if not _is_as_written(file, name, entry):
                raise UserError(f"the checkpoint file {file} is missing or damaged: {remedy}")
            if file.suffix == ".safetensors":
                state = read_tensors(file, "checkpoint file")
            else:
                state = load_pt(file, "checkpoint file", map_location=device)
            there = {entry for entry, _ in named_entries(state)}
            if differing := sorted(there ^ set(map(str, entry.get("entries") or []))):
                raise UserError(f"the checkpoint file {file} is not whole ({', '.join(differing[:3])}): {remedy}")
            states[file] = state
        return states


def named_entries(state: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``(dotted name, value)`` of every leaf of nested dictionaries and lists; empty ones are leaves."""
    children = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    if not children:
        yield prefix, state
    for name, value in children:
        yield from named_entries(value, f"{prefix}.{name}" if prefix else str(name))


def _is_as_written(file: Path, name: str, entry: Any) -> bool:
    """Whether ``file`` is the one that a manifest's entry ``name`` describes."""
    if file.name != name or not isinstance(entry, dict) or not isinstance(entry.get("entries"), list):
        return False
    if not file.is_file() or file.stat().st_size != entry.get("bytes"):
        return False
    return file_sha256(file) == entry.get("sha256")


def _is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return not isinstance(value, float) or math.isfinite(value)


def _size(state: Any) -> int:
    tensors = [value for _, value in named_entries(state) if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
