"""The digits end to end: the quickstart's three commands on the device, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.gpu_check.parts import Context

TINY = {
    "train_flowhead": ["train.steps=20"],
    "train_ae": ["train.steps=20", "monitor.images=40"],
    "train_mar": ["train.steps=20", "sample.count=60", "evaluate.online_count=0"],
}


def run(context: Context) -> None:
    """Report seconds and metrics of every stage."""
    folder = context.folder / "digits"
    context.report("size", "preset digits" + (", 20 steps a stage" if context.tiny else ""))
    total = 0.0
    for stage in TINY:
        words = [f"run_dir={folder}", *(TINY[stage] if context.tiny else [])]
        start = time.perf_counter()
        environment = {**os.environ, "PYTHON": sys.executable, "PRESET": "digits"}
        done = subprocess.run(["bash", f"scripts/{stage}.sh", *words], env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        total += seconds
        if done.returncode:
            raise RuntimeError(f"scripts/{stage}.sh ended with {done.returncode}: {done.stderr[-3000:]}")
        context.report(stage, {"seconds": seconds, **found(folder, stage)})
    context.report("all stages", {"seconds": total})


def found(folder: Path, stage: str) -> dict[str, Any]:
    """The metrics that a stage has left, and the seconds that it trained."""
    if stage == "train_flowhead":
        return {"training_seconds": read(folder / "flowhead" / "result.json").get("seconds")}
    if stage == "train_ae":
        result = read(folder / "ae" / "result.json")
        return {"training_seconds": result.get("seconds"), "psnr": result.get("psnr"), "rfid": result.get("rfid")}
    result, evaluation = read(folder / "mar" / "result.json"), read(folder / "mar" / "evaluation.json")
    fid = {cfg: metrics["fid"] for cfg, metrics in evaluation["metrics"].items()}
    return {"training_seconds": result.get("seconds"), "fid_by_guidance": fid}


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())
