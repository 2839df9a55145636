"""What runs of the scripts leave, and how one is killed."""

import json
import os
import signal
import subprocess
import time

import pytest


def read(path) -> dict:
    return json.loads(path.read_text(), parse_constant=pytest.fail)


def losses(run_dir, stage: str) -> list[float]:
    return [
        row["loss"]
        for row in map(json.loads, (run_dir / stage / "log.jsonl").read_text().splitlines())
        if "loss" in row
    ]


def kill_once_it_has_saved(command: dict, checkpoint) -> None:
    """Start ``command`` in a process group of its own, and kill the whole group once ``checkpoint`` is there."""
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=os.setpgrp)
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
