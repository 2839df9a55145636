"""The study's cells, as many as the time allows and several at once: small runs leave most of a GPU to others."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from flowprior.run.files import write_json
from scripts.gpu_check.parts import Context

KEPT = Path("docs/results/study/mnist")
WORDS = ["--rows", "minimum", "--lengths", "trained"]
MOST_AT_ONCE = 16
TINY_TABLE = """
preset: digits
options: {autoencoder: train.eval_steps=0 monitor.images=40}
lengths: {trained: {options: train.steps=4, selects: true}}
targets: {semantic: {preset: digits}}
rows: {none: {options: regulariser.name=none, generators: []}}
"""


def run(context: Context) -> None:
    """Report every cell that is finished, beside those that are kept or reported already, at once; then the seconds of them all."""
    results, start = context.folder / "cells", time.perf_counter()
    words = ["--runs", str(context.folder / "runs"), "--results", str(results)]
    if context.tiny:
        table = context.folder / "tiny.yaml"
        table.write_text(TINY_TABLE)
        results.mkdir()
        words += ["--data", str(table), "--seeds", "0", "--jobs", "1"]
    else:
        shutil.copytree(KEPT, results) if KEPT.is_dir() else results.mkdir()
        words += [*WORDS, "--jobs", str(min(MOST_AT_ONCE, os.cpu_count() or 1))]
    for name, value in context.begun.items():
        if "cell" in value:
            write_json(results / f"{name}.json", value["cell"])
    before = {file.name for file in results.glob("*.json")}
    made: set[str] = set()
    handler_before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # when the time is over
    with multi_process_service(context), open(context.folder / "study.log", "w") as log:
        study = subprocess.Popen(
            [sys.executable, "-m", "study", *words],
            env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while study.poll() is None:
                time.sleep(0.5)
                made |= report_new(context, results, before | made)
        finally:
            if study.poll() is None:  # its runs save, and end with it
                study.terminate()
                study.wait()
            made |= report_new(context, results, before | made)
            seconds = time.perf_counter() - start
            said = (context.folder / "study.log").read_text(errors="replace")
            failed = sum(line.startswith("failed: ") for line in said.splitlines())
            context.report("all cells", {"finished": len(made), "failed": failed, "seconds": seconds})
            signal.signal(signal.SIGTERM, handler_before)
    if study.returncode:
        raise RuntimeError(f"the study ended with {study.returncode}: {said[-2000:]}")


def report_new(context: Context, results: Path, known: set[str]) -> set[str]:
    """Report the cells whose files are not ``known``, with the usual folder of runs in place of this part's; their names."""
    new = {file.name for file in results.glob("*.json")} - known
    for name in sorted(new):
        text = (results / name).read_text()
        text = text.replace(str(context.folder / "runs"), f"runs/study/{json.loads(text)['study']}")
        context.report(Path(name).stem, {"cell": json.loads(text)})
    return new


@contextlib.contextmanager
def multi_process_service(context: Context) -> Iterator[None]:
    """Within, processes share a GPU by NVIDIA's multi-process service, so that their kernels run beside one another, where its daemon starts."""
    command = shutil.which("nvidia-cuda-mps-control") if context.device.type == "cuda" else None
    if command is None:
        yield
        return
    folders = {
        name: str(context.folder / name.lower()) for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
    }
    for folder in folders.values():
        Path(folder).mkdir()
    # Nothing of its output is waited for: the daemon goes on, and holds it open.
    quiet = {
        "env": {**os.environ, **folders},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "timeout": 20,
    }
    started = subprocess.run([command, "-d"], **quiet).returncode == 0
    context.report("multi-process service", {"started": started})
    if not started:
        yield
        return
    os.environ |= folders
    try:
        yield
    finally:
        subprocess.run([command], input=b"quit\n", **quiet)
        for name in folders:
            del os.environ[name]
