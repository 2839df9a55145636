"""Parts as processes with time limits: one that fails, hangs or runs out of memory costs no other part anything."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowprior.run.files import write_json
from scripts.gpu_check.cuda_lines import PACKAGES
from scripts.gpu_check.parts import Part

CORES = os.cpu_count() or 1
BESIDE_ONE_ANOTHER = max(2, CORES // 2)
# A part that has less than this left is not started: it could not even import PyTorch and compile.
FEWEST_SECONDS = 15
TRACEBACK_LENGTH = 3000
BEGUN = "begun.json"  # in a part's folder


@dataclass
class Running:
    """A part that is at work."""

    name: str
    part: Part
    process: subprocess.Popen
    folder: Path
    start: float
    limit: float  # seconds


class Runner:
    """Runs parts and keeps what they report.

    Args:
        parts: by name, in the order of their worth.
        deadline: of ``time.monotonic``, at which all are stopped.
        tiny: toy sizes.
        work: a folder for the parts' files.
        keep: called with a part's name and its entry whenever one has ended.
        begun: what an earlier check that stopped parts has of them.
    """

    def __init__(
        self,
        parts: dict[str, Part],
        deadline: float,
        tiny: bool,
        work: Path,
        keep: Callable[[str, dict[str, Any]], None],
        begun: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        self.parts, self.deadline, self.tiny, self.work, self.keep = parts, deadline, tiny, work, keep
        self.begun = begun or {}

    def run(self) -> None:
        """Start part after part, those whose times do not count several at once, until all have ended or the time is over."""
        waiting, running = list(self.parts), []
        try:
            while waiting or running:
                while waiting and self._has_place(self.parts[waiting[0]], running):
                    if (started := self._start(waiting.pop(0))) is not None:
                        running.append(started)
                time.sleep(0.05)
                running = [r for r in running if not self._has_ended(r)]
        finally:  # Ctrl-C too leaves nothing behind
            for left in running:
                end(left.process, left.part.seconds_to_end)

    def _has_place(self, part: Part, running: list[Running]) -> bool:
        if part.alone or any(r.part.alone for r in running):
            return not running
        return len(running) < BESIDE_ONE_ANOTHER

    def _start(self, name: str) -> Running | None:
        part, left = self.parts[name], self.deadline - time.monotonic()
        missing = [package for package in part.needs if importlib.util.find_spec(package) is None]
        if missing:
            self.keep(name, {"status": "skipped", "why": f"not installed: {', '.join(missing)}"})
            return None
        if left < FEWEST_SECONDS + part.seconds_to_end:
            self.keep(name, {"status": "left out", "why": "the time was over"})
            return None
        folder = self.work / name.replace(" ", "_")
        folder.mkdir()
        write_json(folder / BEGUN, self.begun.get(name, {}))
        words = ["-m", "scripts.gpu_check.part", name, str(folder), "--tiny" if self.tiny else "--full"]
        command = [sys.executable, *coverage_words(self.work, name), *words]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COVERAGE_CORE": "sysmon", **part.environment}
        if sys.version_info < (3, 12):
            del environment["COVERAGE_CORE"]
        if not part.alone:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, CORES // BESIDE_ONE_ANOTHER)))
        with open(folder / "stderr", "wb") as stderr:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=stderr, env=environment, start_new_session=True
            )
        return Running(name, part, process, folder, time.monotonic(), min(part.seconds, left) - part.seconds_to_end)

    def _has_ended(self, running: Running) -> bool:
        seconds, status = time.monotonic() - running.start, running.process.poll()
        if status is None and seconds < running.limit:
            return False
        end(running.process, running.part.seconds_to_end)
        entry: dict[str, Any] = {"status": "done", "seconds": round(seconds, 1), "results": reported(running.folder)}
        if status is None:
            entry |= {"status": "stopped", "why": f"it took longer than its {running.limit:.0f} s"}
        elif status:
            said = (running.folder / "stderr").read_text(errors="replace")
            entry |= {"status": "failed", "why": last_line(said) or f"exit status {status}"}
            entry["traceback"] = said[-TRACEBACK_LENGTH:]
        elif broken := disagreements(entry["results"]):
            entry |= {"status": "disagrees", "why": "; ".join(broken)}
        self.keep(running.name, entry)
        return True


def end(process: subprocess.Popen, seconds: int) -> None:
    """End a part and whatever it has started: by a SIGTERM, which it has so many seconds to follow, and in any case at last."""
    if seconds and process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def coverage_words(work: Path, name: str) -> list[str]:
    """What makes an interpreter note the lines that it executes, where the package coverage is installed."""
    if importlib.util.find_spec("coverage") is None:
        return []
    file = work / f".coverage.{name.replace(' ', '_')}"
    return ["-m", "coverage", "run", f"--data-file={file}", f"--source={','.join(PACKAGES)}"]


def executed_lines(work: Path, root: Path) -> dict[str, set[int]] | None:
    """The lines that all parts have executed, by file below ``root``; None where nobody noted them."""
    if importlib.util.find_spec("coverage") is None:
        return None
    from coverage import CoverageData

    lines: dict[str, set[int]] = {}
    for file in sorted(work.glob(".coverage.*")):
        data = CoverageData(str(file))
        data.read()
        for measured in data.measured_files():
            if (path := Path(measured)).is_relative_to(root):
                lines.setdefault(str(path.relative_to(root)), set()).update(data.lines(measured) or [])
    return lines


def reported(folder: Path) -> dict[str, Any]:
    """What the part in ``folder`` has reported so far."""
    file = folder / "report.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def report_to(folder: Path) -> Callable[[str, Any], None]:
    """A function that keeps results by name in ``folder`` at once."""
    results: dict[str, Any] = {}

    def report(name: str, value: Any) -> None:
        results[name] = value
        write_json(folder / "report.json", results)

    return report


def disagreements(results: dict[str, Any]) -> list[str]:
    """The results that were compared with something and differ by more than they may."""
    return [name for name, value in results.items() if isinstance(value, dict) and value.get("agree") is False]


def last_line(text: str) -> str:
    """The last line that says something, cut to a line's length."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def compile_cache(folder: Path) -> dict[str, str]:
    """Environment by which all parts share what they compile."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="gpu_check_", ignore_cleanup_errors=True)
