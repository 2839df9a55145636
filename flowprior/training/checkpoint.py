"""Checkpoints of named objects. A checkpoint is a folder, and counts only once it carries its final name.

``step_00001200/`` holds one ``<name>.safetensors`` per object whose state is tensors alone, one ``<name>.pt`` (tensors and
plain values, read with ``weights_only=True``) per optimiser, and ``manifest.json`` with the step and every file's size and SHA-256.
"""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError

from flowprior.errors import UserError
from flowprior.training.files import (
    file_sha256,
    flush_to_disk,
    read_json,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)

FORMAT_VERSION = 1


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
        """
        final = self.path(step)
        temporary = self.folder / f".{final.name}.tmp"
        try:
            self._save(step, temporary, final)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise UserError(
                f"cannot write the checkpoint {final} ({error}): make room, then run the same command again"
            ) from error

    def _save(self, step: int, temporary: Path, final: Path) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {}
        for name, item in self.objects.items():
            state = item.state_dict()
            if all(isinstance(value, torch.Tensor) for value in state.values()):
                file = temporary / f"{name}.safetensors"
                write_tensors(file, state)
            else:
                file = temporary / f"{name}.pt"
                buffer = io.BytesIO()
                torch.save(state, buffer)
                write_bytes(file, buffer.getvalue())
            files[file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        write_json(temporary / "manifest.json", {"format": FORMAT_VERSION, "step": step, "files": files})
        flush_to_disk(temporary)
        if final.exists():
            shutil.rmtree(final)
        os.rename(temporary, final)
        flush_to_disk(self.folder)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(old))

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
        manifest = read_json(folder / "manifest.json", "checkpoint manifest")
        files = manifest.get("files")
        if manifest.get("format") != FORMAT_VERSION or not isinstance(files, dict):
            raise UserError(f"the checkpoint {folder} is of another version of this code: {remedy}")
        expected = {Path(name).stem for name in files}
        if expected != set(self.objects):
            differing = ", ".join(sorted(expected ^ set(self.objects)))
            raise UserError(f"the checkpoint {folder} and this run differ in what they save ({differing}): {remedy}")
        for name, entry in files.items():
            file = folder / Path(name).name
            if not file.is_file() or not isinstance(entry, dict) or file_sha256(file) != entry.get("sha256"):
                raise UserError(f"the checkpoint file {file} is missing or damaged: {remedy}")
            try:
                if file.suffix == ".safetensors":
                    state = read_tensors(file, "checkpoint file")
                else:
                    state = torch.load(file, map_location=device, weights_only=True)
                self.objects[file.stem].load_state_dict(state)
            except UserError:
                raise
            except Exception as error:  # of a damaged file: the reader's stack machine fails in a dozen ways
                raise UserError(
                    f"{file} does not fit this run ({' '.join(str(error).split())[:200]}): {remedy}"
                ) from error
        return steps[-1]
