"""Tasks as chains of processes, so many at a time. Whatever ends the study ends them with a SIGTERM, after which each saves and goes on later."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from flowprior.run.files import read_json, write_json
from study.plan import Task

PR_SET_PDEATHSIG = 1
# Looked up before any fork: a child must not wait for another thread's lock.
PRCTL = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
SPENT, LOG = "spent.json", "study.log"


@dataclass
class Running:
    """A task that is at work on one of its commands."""

    task: Task
    slot: int
    log: IO[bytes]
    number: int = -1  # of the command
    process: subprocess.Popen | None = None
    start: float = 0.0


@dataclass
class Runner:
    """Runs tasks, each after the one whose prior or autoencoder it takes.

    Args:
        tasks: in the order in which they start.
        jobs: so many at a time.
        devices: of ``CUDA_VISIBLE_DEVICES``, dealt out in turn to the jobs; empty: a CPU, with a thread for every job.
        finished: called with each task that has run to its end.
        python: the interpreter.
    """

    tasks: list[Task]
    jobs: int
    devices: list[str]
    finished: Callable[[Task], None]
    python: str = sys.executable
    done: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def run(self) -> dict[str, str]:
        """Until nothing is left that can run; what failed, and why. An exception, such as that of a signal, ends the processes first."""
        waiting, running = list(self.tasks), []
        try:
            while waiting or running:
                waiting = self._start(waiting, running)
                time.sleep(0.05)
                for one in list(running):
                    if self._has_ended(one):
                        one.log.close()
                        running.remove(one)
        except BaseException:
            self._end(running)
            raise
        return self.failed

    def _start(self, waiting: list[Task], running: list[Running]) -> list[Task]:
        """Start what there is a place for; what still waits."""
        left, names = [], {task.name for task in self.tasks}
        for task in waiting:
            if task.after in self.failed:
                self._fail(task, f"{task.after} failed, which it needs")
            elif len(running) < self.jobs and (task.after not in names or task.after in self.done):
                task.run_dir.mkdir(parents=True, exist_ok=True)
                slot = min(set(range(self.jobs)) - {one.slot for one in running})
                one = Running(task, slot, open(task.run_dir / LOG, "ab"))
                print(f"started {task.name} ({task.run_dir / LOG})", flush=True)
                self._next(one)
                running.append(one)
            else:
                left.append(task)
        return left

    def _next(self, one: Running) -> None:
        """Start the next command, in a session of its own: Ctrl-C on a terminal reaches this process alone, which hands on one signal."""
        one.number, one.start = one.number + 1, time.perf_counter()
        words = one.task.commands[one.number].words
        one.log.write(f"--- python -m {' '.join(words)}\n".encode())
        one.log.flush()
        one.process = subprocess.Popen(
            [self.python, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=one.log,
            stderr=one.log,
            env={**os.environ, **self._environment(one.slot)},
            start_new_session=True,
            preexec_fn=_ends_with_parent if PRCTL else None,
        )

    def _environment(self, slot: int) -> dict[str, str]:
        if not self.devices:
            return {"OMP_NUM_THREADS": "1"}
        return {"CUDA_VISIBLE_DEVICES": self.devices[slot % len(self.devices)]}

    def _has_ended(self, one: Running) -> bool:
        """Whether the whole task has; where only its command has, the next one starts."""
        if not self._reaped(one, os.WNOHANG):
            return False
        if one.process.returncode:
            said = last_line(one.task.run_dir / LOG) or f"exit status {one.process.returncode}"
            self._fail(one.task, f"{said} ({one.task.run_dir / LOG})")
            return True
        if one.number + 1 < len(one.task.commands):
            self._next(one)
            return False
        self.finished(one.task)
        self.done.add(one.task.name)
        return True

    def _reaped(self, one: Running, options: int = 0) -> bool:
        """Whether the command has ended, or once it has; its seconds are added to those that its stage has taken, in the run folder."""
        pid, status, usage = os.wait4(one.process.pid, options)
        if not pid:
            return False
        one.process.returncode = os.waitstatus_to_exitcode(status)
        command, spent = one.task.commands[one.number], _read(one.task.run_dir)
        took = {"seconds": time.perf_counter() - one.start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        of_stage = spent.setdefault(command.stage, {})
        of_stage[command.name] = _sum([of_stage.get(command.name, {}), took])
        write_json(one.task.run_dir / SPENT, spent)
        return True

    def _end(self, running: list[Running]) -> None:
        """SIGTERM to all, and wait until they have saved; a second signal meanwhile kills them."""
        left = [one for one in running if one.process is not None and one.process.returncode is None]
        try:
            for one in left:
                os.kill(one.process.pid, signal.SIGTERM)
            for one in left:
                self._reaped(one)
        except BaseException:
            for one in left:
                one.process.kill()
            raise

    def _fail(self, task: Task, why: str) -> None:
        self.failed[task.name] = why
        print(f"failed: {task.name}: {why}", file=sys.stderr, flush=True)


def spent_on(run_dir: Path) -> dict[str, dict[str, float]]:
    """By stage, over all attempts: ``seconds`` of the clock, and ``cpu_seconds``. An attempt that a power cut ended is not in it."""
    return {stage: _sum(list(commands.values())) for stage, commands in _read(run_dir).items()}


def forget_seconds(run_dir: Path, stage: str, commands: Collection[str]) -> None:
    """Leave out what ``commands`` of ``stage`` have taken: they run again in the folder that they were in."""
    spent = _read(run_dir)
    if kept := {name: took for name, took in spent.pop(stage, {}).items() if name not in commands}:
        spent[stage] = kept
    if (run_dir / SPENT).is_file():
        write_json(run_dir / SPENT, spent)


def _read(run_dir: Path) -> dict[str, dict[str, dict[str, float]]]:
    """By stage and command; of a stage of before commands were told apart, all under one empty name."""
    file = run_dir / SPENT
    spent = read_json(file, "list of seconds") if file.is_file() else {}
    return {stage: {"": took} if "seconds" in took else took for stage, took in spent.items()}


def _sum(parts: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(part.get(name, 0.0) for part in parts) for name in ("seconds", "cpu_seconds")}


def last_line(file: Path) -> str:
    """Of a log, without the parts of a progress bar that others have overwritten."""
    lines = file.read_text(errors="replace").split("\n")
    return next((line.split("\r")[-1].strip() for line in reversed(lines) if line.strip()), "")[:300]


def _ends_with_parent() -> None:
    """In the child: SIGTERM where the study's process is killed, so that it leaves no run behind."""
    PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
