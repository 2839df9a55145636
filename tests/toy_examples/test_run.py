"""The toys' command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toy_examples.distributions import DISTRIBUTIONS

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "--steps",
    "12",
    "--width",
    "16",
    "--depth",
    "1",
    "--batch",
    "64",
    "--latents",
    "50",
    "--latent-steps",
    "8",
    "latents.train.eval_steps=2",
    "map.grid=8",
    "map.pairs=4",
]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "toy_examples/run.py", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("toys")
    return out, run("--distribution", "spiral", "--out", str(out), *TINY)


def test_a_run_leaves_the_panels_and_the_metrics_and_prints_a_table(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, result = finished
    assert result.returncode == 0, result.stderr
    assert (out / "spiral" / "panels.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((out / "spiral" / "metrics.json").read_text())
    assert -1 <= metrics["along_optimisation"]["pearson"] <= 1 and metrics["over_grid"]["region"]
    assert "spiral" in result.stdout.splitlines()[-1]


def test_a_second_run_reuses_the_flow_and_the_latents(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, _ = finished
    before = (out / "spiral" / "flow" / "prior" / "model.safetensors").stat().st_mtime_ns
    again = run("--distribution", "spiral", "--out", str(out), *TINY)
    assert again.returncode == 0, again.stderr
    assert "flow: complete" in again.stdout and "latents: complete" in again.stdout
    assert (out / "spiral" / "flow" / "prior" / "model.safetensors").stat().st_mtime_ns == before


def test_a_flow_of_other_options_is_refused_in_one_line(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = finished
    other = run("--distribution", "spiral", "--out", str(out), *TINY, "--width", "32")
    assert other.returncode == 2
    assert len(other.stderr.strip().splitlines()) == 1 and "width: 16 -> 32" in other.stderr


def test_an_unknown_distribution_exits_with_two_and_names_the_six() -> None:
    result = run("--distribution", "circle")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and all(name in result.stderr for name in DISTRIBUTIONS)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--distribution", "spiral", "--out", str(tmp_path / "file" / "below"), *TINY)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and "Traceback" not in result.stderr
