"""Rows 2 and 13: saves that die at any point, and disks that fill."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from flowprior.run.files import tensors_fingerprint
from flowprior.training.checkpoint import Checkpoints
from flowprior.training.ema import EMA
from soak.instruments import no_room_check
from soak.processes import Process
from soak.stages import CannotTry, Soak, Trial, checkpoint_hash, stage_folder, steps_saved

CALLS = ("open", "fsync", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


class SmallRun:
    """A model, its optimiser and its average, a few steps old."""

    def __init__(self, folder: Path, steps: int, keep: int) -> None:
        self.model = nn.Linear(8, 8)
        with torch.no_grad():
            self.model.weight.fill_(0.5)
            self.model.bias.fill_(0.1)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.ema = EMA(self.model, 0.9)
        objects = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema}
        self.checkpoints = Checkpoints(folder, objects, keep)
        for step in range(steps):
            self.model(torch.full((1, 8), float(step))).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.ema.update(step)

    def hash(self) -> str:
        tensors = {**self.model.state_dict(), **{f"ema.{k}": v for k, v in self.ema.state_dict().items()}}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{name}": value for name, value in state.items()}
        return tensors_fingerprint(tensors)


def crash_points(soak: Soak) -> Iterator[Trial]:
    """Die before every system call of a save that prunes, and after every so many bytes of every file that it writes."""
    for keep in (1, 2) if not soak.quick else (1,):
        start = soak.folder / f"crash{keep}"
        hashes = {}
        for step in (1, 2):
            run = SmallRun(start, step, keep)
            hashes[step] = run.hash()
            run.checkpoints.save(step)
        hashes[3] = SmallRun(start, 3, keep).hash()
        for number in range(0, 500, 4 if soak.quick else 1):
            problem, ended = _die(soak, start, keep, hashes, lambda number=number: _die_at_call(number))
            if ended:
                break
            yield f"keep {keep}, before call {number}", problem
        largest = max(file.stat().st_size for file in start.rglob("*") if file.is_file())
        for size in range(0, largest + 1, max(1, largest // soak.few(150, 8))):
            problem, _ = _die(soak, start, keep, hashes, lambda size=size: _die_at_byte(size))
            yield f"keep {keep}, at byte {size} of a file", problem


def _die(
    soak: Soak, start: Path, keep: int, hashes: dict[int, str], arm: Callable[[], None]
) -> tuple[str | None, bool]:
    """Save step 3 over step 2 and die; what is wrong then, and whether the save came to its end."""
    folder = soak.folder / "crashed"
    shutil.copytree(start, folder)

    def save() -> None:
        run = SmallRun(folder, 3, keep)
        arm()
        run.checkpoints.save(3)
        os._exit(0)

    process = Process(save, soak.folder / "output" / "crash")
    code = process.wait(30)
    again, problem = SmallRun(folder, 0, keep), None
    step = again.checkpoints.load_latest()
    if step not in (2, 3) or again.hash() != hashes[step]:
        problem = f"step {step} loads, with other values"
    else:
        again.checkpoints.sweep()
        again.checkpoints.save(4)
        names = sorted(p.name for p in folder.iterdir())
        if SmallRun(folder, 0, keep).checkpoints.load_latest() != 4 or any(name.startswith(".") for name in names):
            problem = f"the next save leaves {names}"
    shutil.rmtree(folder)
    return problem, code == 0


def _die_at_call(number: int) -> None:
    """SIGKILL before call ``number`` of those that change what is on the disk."""
    calls = [0]

    def count(event: str, *arguments: object) -> None:
        if event in CALLS:
            if calls[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            calls[0] += 1

    fsync = os.fsync
    os.fsync = lambda descriptor: (count("fsync"), fsync(descriptor))
    sys.addaudithook(count)


def _die_at_byte(size: int) -> None:
    """The system ends the process when a file grows beyond ``size`` bytes, in the middle of the write."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of so many kilobytes, mounted at ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotTry("there is no mount command") from error
    if mounted.returncode:
        raise CannotTry(f"small disks cannot be mounted ({mounted.stderr.strip()}): it takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(soak: Soak) -> Iterator[Trial]:
    """Run every stage on disks of many sizes, with and without the look for room beforehand."""
    with small_disk(soak.folder / "disk", 64):
        pass
    for name in soak.stages if not soak.quick else ("ae", "cache"):
        soak.reference(name)
        needs = _kilobytes(soak.fresh(name))
        most = _kilobytes(stage_folder(name, soak.base)) + 1400
        for look in (True, False):
            sizes = range(needs + 8, needs + most, max(4, most // soak.few(8, 3)))
            for kilobytes in sizes:
                yield _on_a_disk(soak, name, kilobytes, look)


def _kilobytes(folder: Path) -> int:
    pages = sum(-(-p.stat().st_size // 4096) + 1 for p in folder.rglob("*"))
    return 4 * pages


def _on_a_disk(soak: Soak, name: str, kilobytes: int, look: bool) -> Trial:
    label, problem = f"{name} on {kilobytes} kB{'' if look else ', not looking for room'}", None
    fresh = soak.fresh(name)
    with small_disk(soak.folder / "disk", kilobytes) as disk:
        run = disk / "run"
        try:
            shutil.copytree(fresh, run)
        except shutil.Error:
            return label, None  # not even what the stage stands on has room
        process = soak.start(name, run, instrument=(lambda: None) if look else no_room_check)
        code, said = process.wait(), process.said()
        lines = [line for line in said.splitlines() if line.startswith("error: ")]
        saved = steps_saved(name, run)
        if code not in (0, 2) or "Traceback" in said or (code == 2 and len(lines) != 1):
            problem = f"exit code {code}: {said[-500:]}"
        elif remains := [p.name for p in run.rglob("*") if p.name.endswith(".tmp") or p.name == ".lock"]:
            problem = f"left behind: {remains}"
        elif saved:
            whole = stage_folder(name, run) / "checkpoints" / f"step_{saved[-1]:08d}"
            if len({file.suffix for file in whole.iterdir()}) < 3 or not checkpoint_hash(whole):
                problem = f"the checkpoint {whole.name} is not whole"
        shutil.rmtree(fresh)
        if problem is None:
            shutil.copytree(run, fresh)
    if problem is None:
        problem = soak.finish(name, fresh)
    shutil.rmtree(fresh, ignore_errors=True)
    return label, problem
