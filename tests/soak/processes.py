"""Real processes that start in a blink: forks of this one, in which everything is imported. Each leads a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

import generation.train
import mar.cache_latents
import mar.distil_head
import mar.estimate_scale
import mar.evaluate
import mar.generate
import mar.train_mar
import simflow.train_simflow
import tokenizer.evaluate
import tokenizer.prior.train_flowhead
import tokenizer.train_ae
from flowprior.errors import entry_point
from sit.config import SiTStageConfig
from slow_imports import import_all

import_all()

MAINS = {
    "flowhead": tokenizer.prior.train_flowhead.main,
    "ae": tokenizer.train_ae.main,
    "ae_evaluate": tokenizer.evaluate.main,
    "cache": mar.cache_latents.main,
    "scale": mar.estimate_scale.main,
    "mar": mar.train_mar.main,
    "simflow": simflow.train_simflow.main,
    "sit": entry_point(partial(generation.train.main, SiTStageConfig)),
    "distil": mar.distil_head.main,
    "generate": mar.generate.main,
    "evaluate": mar.evaluate.main,
}
Instrument = Callable[[], None]  # runs in the new process before its command


def nothing() -> None:
    """No instrument."""


class Process:
    """A fork of this process.

    Args:
        work: what it does; its exit code is that of the SystemExit in which ``work`` ends, or 0.
        output: file of its standard output and error.
    """

    def __init__(self, work: Callable[[], None], output: Path) -> None:
        self.output, self.code_file = output, output.with_suffix(".code")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text("")
        for left in (self.code_file, Path(f"{self.code_file}.said"), Path(f"{self.code_file}.ended")):
            left.unlink(missing_ok=True)
        self.code: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._become(work)

    def _become(self, work: Callable[[], None]) -> None:
        code = 1
        try:
            os.setsid()
            descriptor = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for number in (1, 2):
                os.dup2(descriptor, number)
            # A test's are its own.
            sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
            os.environ["FLOWPRIOR_EXIT_CODE"] = str(self.code_file)
            tqdm.set_lock(
                threading.RLock()
            )  # its own: one that is killed while it holds the common one stops all others
            work()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = 120) -> int | None:
        """The exit code; None for one that does not end in time, which is killed."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.kill()
                self.code = None
                return None
            time.sleep(0.002)
        return self.code

    def kill(self) -> None:
        """SIGKILL to the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send(self, number: int, rank: int | None = None) -> bool:
        """Send a signal to it, or to one of the ranks that it launched; whether there was one to send to.

        A rank whose command has ended waits for the launcher, which would wait for ever for one that is killed then: a launcher of commands,
        as the scripts', has no such wait.
        """
        if rank is not None and Path(f"{self.code_file}.ended").exists():
            return False
        pids = [self.pid] if rank is None else self.children()[rank : rank + 1]
        if not pids:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], number)
            return True
        return False

    def children(self) -> list[int]:
        """Process ids of the ranks, by age."""
        try:
            listed = [path.read_text().split() for path in Path(f"/proc/{self.pid}/task").glob("*/children")]
        except OSError:
            return []
        return sorted(int(pid) for pids in listed for pid in pids)

    def orphans(self) -> list[int]:
        """Processes of its session that are still there."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError, ValueError):
                state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
                if int(session) == self.pid and state not in "ZX":
                    found.append(int(stat.parent.name))
        return found

    def said(self) -> str:
        """What it printed, and behind it the line that it left for the scripts to print."""
        left = Path(f"{self.code_file}.said")
        return self.output.read_text(errors="replace") + (left.read_text() if left.is_file() else "")

    def run_code(self) -> int | None:
        """The run's own exit code, where a launcher has made 1 of it."""
        if self.code_file.is_file() and self.code_file.read_text().strip():
            return int(self.code_file.read_text())
        return self.code


def command(name: str, words: list[str], output: Path, instrument: Instrument = nothing, ranks: int = 1) -> Process:
    """Start a stage's command with ``words``; with several ``ranks``, as torchrun's agent starts them."""

    def work() -> None:
        sys.argv = [name, *words]
        if ranks == 1:
            instrument()
            MAINS[name]()
        else:
            _launch(name, instrument, ranks)

    return Process(work, output)


def _launch(name: str, instrument: Instrument, ranks: int) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "600")  # as scripts/torchrun.py
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
        local_addr="localhost",
    )
    elastic_launch(config, _rank)(name, instrument)


def _rank(name: str, instrument: Instrument) -> None:
    instrument()
    MAINS[name]()
    Path(f"{os.environ['FLOWPRIOR_EXIT_CODE']}.ended").touch()


def alone(work: Callable[[], None], output: Path, seconds: float = 300) -> Process:
    """Run a function in a fork to its end."""
    process = Process(work, output)
    process.wait(seconds)
    return process
