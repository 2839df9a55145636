"""The study's cells, as many as the time allows and several at once: small runs leave most of a GPU to others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
    """Report every cell that is finished, beside those that are kept already, at once; then the seconds of them all."""
    results, start = context.folder / "cells", time.perf_counter()
    words = ["--runs", str(context.folder / "runs"), "--results", str(results)]
    if context.tiny:
        table = context.folder / "tiny.yaml"
        table.write_text(TINY_TABLE)
        words += ["--data", str(table), "--seeds", "0", "--jobs", "1"]
    else:
        shutil.copytree(KEPT, results) if KEPT.is_dir() else results.mkdir()
        words += [*WORDS, "--jobs", str(min(MOST_AT_ONCE, os.cpu_count() or 1))]
    before = {file.name for file in results.glob("*.json")}
    with NvidiaMPS(context.folder), open(context.folder / "study.log", "w") as log:
        study = subprocess.Popen(
            [sys.executable, "-m", "study", *words],
            env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        made: set[str] = set()
        while study.poll() is None:
            time.sleep(0.5)
            made |= report_new(context, results, before | made)
    made |= report_new(context, results, before | made)
    said = (context.folder / "study.log").read_text(errors="replace")
    failed = [line for line in said.splitlines() if line.startswith("failed: ")]
    context.report("all cells", {"finished": len(made), "failed": len(failed), "seconds": time.perf_counter() - start})
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


class NvidiaMPS:
    """Within, processes share a GPU by NVIDIA's multi-process service where its daemon is installed: their kernels run beside one another."""

    def __init__(self, folder: Path) -> None:
        self.variables = {
            "CUDA_MPS_PIPE_DIRECTORY": str(folder / "mps"),
            "CUDA_MPS_LOG_DIRECTORY": str(folder / "mps_log"),
        }
        self.command = shutil.which("nvidia-cuda-mps-control")

    def __enter__(self) -> None:
        if self.command:
            for name, value in self.variables.items():
                Path(value).mkdir()
                os.environ[name] = value
            subprocess.run([self.command, "-d"], check=True)

    def __exit__(self, *_: Any) -> None:
        if self.command:
            subprocess.run([self.command], input="quit\n", text=True, capture_output=True)
            for name in self.variables:
                del os.environ[name]
