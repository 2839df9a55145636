"""One stage's folder: the resolved config, the log, checkpoints, pictures, and the result once the stage is complete."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import changed_options, to_dict
from flowprior.run.files import read_json, write_bytes, write_json
from flowprior.run.fingerprints import accept_earlier
from flowprior.run.lock import sole_writer
from flowprior.run.written import read_yaml

SECONDS = "seconds"  # that a stage has taken so far


class RunFolder:
    """``<run_dir>/<stage>``. The stage is complete when ``result.json`` is there.

    Args:
        run_dir: folder of the whole run, shared by its stages.
        stage: this stage's name.
        remedy: what a person writes when the folder holds another run; ``{path}`` and ``{stage}`` are filled in.
        product: the saved model in it without which the stage is not complete: it is made again, from the last checkpoint.
    """

    def __init__(
        self,
        run_dir: str | Path,
        stage: str,
        remedy: str = "write run_dir=<another folder>, or delete {path}",
        product: str = "",
    ) -> None:
        self.stage, self.product = stage, product
        self.path = Path(run_dir) / stage
        self.remedy = remedy.format(path=self.path, stage=stage)
        self.config_file, self.inputs_file = self.path / "config.yaml", self.path / "inputs.json"

    @property
    def result_file(self) -> Path:
        return self.path / "result.json"

    def is_complete(self) -> bool:
        made = not self.product or (self.path / self.product / "config.json").is_file()
        return self.result_file.is_file() and made

    def held(self, world: World) -> contextlib.AbstractContextManager[None]:
        """Within, no other run writes into the folder; a :class:`UserError` that names the owner when one does."""
        return sole_writer(self.path, world, may_be_read_only=self.is_complete())

    def has_begun(self) -> bool:
        """Whether there is anything to lose: a result, or a checkpoint."""
        return self.result_file.is_file() or any((self.path / "checkpoints").glob("step_*"))

    def check(self, config: Any, inputs: dict[str, str]) -> list[str]:
        """What differs between this config with these inputs and the folder's run; a :class:`UserError` if that run has begun, or if the model
        in the folder is of no run and would be written over."""
        model = self.path / self.product / "config.json"
        if self.product and model.is_file() and not (self.config_file.is_file() or self.has_begun()):
            raise UserError(f"{model.parent} was made elsewhere, and this run would write over it: {self.remedy}")
        for file in (self.config_file, self.inputs_file):
            if self.has_begun() and not file.is_file():
                raise UserError(f"{self.path} holds a run without its {file.name}: restore the file, or {self.remedy}")
        changes = (
            changed_options(type(config), read_yaml(self.config_file), to_dict(config))
            if self.config_file.is_file()
            else []
        )
        kept = read_json(self.inputs_file, "list of inputs") if self.inputs_file.is_file() else {}
        for name, now in inputs.items():
            if name in kept and accept_earlier(kept[name], now, self.inputs_file) != now:
                changes.append(f"another {name}")
        if changes and self.has_begun():
            raise UserError(f"{self.path} holds a run with other options ({'; '.join(changes[:4])}): {self.remedy}")
        return changes

    def read_result(self, made_by: str) -> dict[str, Any]:
        """What the stage left; a :class:`UserError` that says which command makes it when it is not complete."""
        if not self.is_complete():
            raise UserError(f"{self.path} is not there or not complete: run `{made_by}` first")
        return read_json(self.result_file, f"result of stage '{self.stage}'")

    def open(self, config: Any, world: World, inputs: dict[str, str] | None = None) -> None:
        """Create the folder with this config, or check that the run in it has the same; one that saved nothing yet gives way.

        Args:
            config: resolved.
            world: only the first process writes.
            inputs: fingerprints of what the stage is made from (data, prior, ...), by name; a run goes on with the same ones only.

        Raises:
            UserError: the folder's run was started with other options or inputs, or the folder cannot be written.
        """
        inputs = inputs or {}
        changes = self.check(config, inputs)
        world.barrier()  # nobody writes before everybody has looked
        whole = self.config_file.is_file() and self.inputs_file.is_file()  # a run killed between the two has left one
        if world.is_main and (changes or not whole):
            try:
                if changes:
                    (self.path / SECONDS).unlink(missing_ok=True)  # those of the run that gives way
                write_bytes(self.config_file, yaml.safe_dump(to_dict(config), sort_keys=False).encode())
                write_json(self.inputs_file, inputs)
            except OSError as error:
                raise UserError(f"cannot write into {self.path}: {error.strerror}") from error
        world.barrier()

    def complete(self, result: dict[str, Any]) -> None:
        """Mark the stage complete, with what the next stages and the report want to know."""
        write_json(self.result_file, result)

    def say_complete(self) -> None:
        """One line for the terminal, from one of torchrun's processes."""
        if os.environ.get("RANK", "0") == "0":
            print(f"{self.stage}: complete ({self.path})")


class Stopwatch:
    """Seconds that a stage has taken, kept in its folder so that a resumed stage adds up."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / SECONDS
        try:
            self.before = float(self.file.read_text()) if self.file.is_file() else 0.0
        except ValueError as error:
            raise UserError(f"{self.file} is damaged: delete it, and the stage's seconds are counted anew") from error
        self.start = time.perf_counter()

    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    @contextlib.contextmanager
    def kept(self, world: World) -> Iterator[None]:
        """Writes the seconds down at the end, also of a run that is interrupted within."""
        try:
            yield
        finally:
            if world.is_main:
                self.save()

    def restart(self) -> None:
        """Count this run alone, where nothing of earlier ones is kept."""
        self.before = 0.0

    def save(self) -> None:
        write_bytes(self.file, f"{self.seconds():.3f}".encode())


def peak_memory_gb() -> float:
    """Largest memory of this process so far, in GB: what PyTorch allocated on its GPU, or without one the resident memory; 0 where the
    system does not tell."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if os.uname().sysname == "Darwin" else 1e6)
