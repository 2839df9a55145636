"""The toys' command line, run as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from toy_examples.distributions import DISTRIBUTIONS
from toy_examples.latent_stage import Latents
from toy_examples.run import OBJECTIVES, config_of, parse
from toy_examples.summary import ROWS

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
    "map.dpi=40",
    "density.kde_samples=500",
]


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run(warm_python: str) -> Run:
    """The command with these words, to its end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [warm_python, "toy_examples/run.py", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("toys")
    return out, run("--distribution", "spiral", "--out", str(out), *TINY)


def test_a_run_leaves_the_panels_and_the_metrics_and_prints_a_table(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, result = finished
    assert result.returncode == 0, result.stderr
    for picture in ("panels", "snapshots", "field", "flow"):
        assert Image.open(out / "spiral" / f"{picture}.png").convert("RGB").getextrema() != ((255, 255),) * 3
    assert Image.open(out / "spiral" / "optimisation.gif").n_frames > 2
    metrics = json.loads((out / "spiral" / "metrics.json").read_text())
    assert -1 <= metrics["along_optimisation"]["pearson"] <= 1 and metrics["over_grid"]["region"] == [-2.6, 2.6]
    assert metrics["along_optimisation"]["records"] == 5
    assert f"{metrics['velocity_error']:.3f}" in result.stdout and "modes" not in metrics


def test_a_second_run_reuses_the_flow_and_the_latents(
    finished: tuple[Path, subprocess.CompletedProcess[str]], run: Run
) -> None:
    out, _ = finished
    before = (out / "spiral" / "flow" / "prior" / "model.safetensors").stat().st_mtime_ns
    again = run("--distribution", "spiral", "--out", str(out), *TINY)
    assert again.returncode == 0, again.stderr
    assert "flow: complete" in again.stdout and "latents: complete" in again.stdout
    assert (out / "spiral" / "flow" / "prior" / "model.safetensors").stat().st_mtime_ns == before


def test_all_objectives_stand_on_one_flow_and_are_compared(
    finished: tuple[Path, subprocess.CompletedProcess[str]], run: Run
) -> None:
    out, _ = finished
    before = (out / "spiral" / "latents" / "latents.safetensors").read_bytes()
    result = run("--distribution", "spiral", "--out", str(out), *TINY, "--objective", "all")
    assert result.returncode == 0, result.stderr
    assert "flow: complete" in result.stdout
    assert (out / "spiral" / "latents" / "latents.safetensors").read_bytes() == before
    ends = [before, *((out / "spiral" / o / "latents" / "latents.safetensors").read_bytes() for o in OBJECTIVES[1:])]
    assert len(set(ends)) == 3 and Image.open(out / "objectives.png").size[1] > 0
    *lines, where = result.stdout.splitlines()[-5:]
    assert where == f"pictures and numbers: {out / 'spiral'}"
    assert "of floor" in lines[0] and [line.split()[1] for line in lines[1:]] == list(OBJECTIVES)
    for objective in OBJECTIVES[1:]:
        assert json.loads((out / "spiral" / objective / "metrics.json").read_text())["objective"] == objective


def test_latents_start_as_broad_as_they_are_told_to() -> None:
    assert config_of(parse(["--start-std", "3"])).latents.start_std == 3
    plain, broad = (Latents(4000, seed=0, std=std).points for std in (1.0, 3.0))
    assert torch.equal(broad, 3 * plain) and 2.9 < broad.std() < 3.1


def test_an_unknown_objective_exits_with_two_and_names_the_three(run: Run) -> None:
    result = run("--objective", "mode")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and all(name in result.stderr for name in OBJECTIVES)


def test_a_flow_of_other_options_is_refused_in_one_line(
    finished: tuple[Path, subprocess.CompletedProcess[str]], run: Run
) -> None:
    out, _ = finished
    other = run("--distribution", "spiral", "--out", str(out), *TINY, "--width", "32")
    assert other.returncode == 2
    assert len(other.stderr.strip().splitlines()) == 1 and "width: 16 -> 32" in other.stderr


def test_an_unknown_distribution_exits_with_two_and_names_the_six(run: Run) -> None:
    result = run("--distribution", "circle")
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and all(name in result.stderr for name in DISTRIBUTIONS)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, run: Run) -> None:
    (tmp_path / "file").write_text("")
    result = run("--distribution", "spiral", "--out", str(tmp_path / "file" / "below"), *TINY)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1 and "Traceback" not in result.stderr


def test_the_exact_velocity_needs_no_training_and_keeps_a_folder_of_its_own(tmp_path: Path, run: Run) -> None:
    result = run("--distribution", "mixture", "--velocity", "exact", "--density", "kde", "--out", str(tmp_path), *TINY)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "mixture").exists() and not (tmp_path / "mixture_exact" / "flow").exists()
    metrics = json.loads((tmp_path / "mixture_exact" / "metrics.json").read_text())
    assert (
        metrics["velocity_error"] < 1e-3 and metrics["density"] == "kde" and metrics["modes"]["data"]["covered"] == 1.0
    )


def test_ctrl_c_leaves_a_checkpoint_from_which_the_same_command_ends_as_if_undisturbed(
    tmp_path: Path, run: Run, warm_python: str
) -> None:
    longer = [*TINY, "latents.train.checkpoint_steps=0", "latents.train.eval_steps=500", "map.grid=4"]
    longer[longer.index("--latent-steps") + 1] = "1000"
    undisturbed = run("--distribution", "spiral", "--out", str(tmp_path / "whole"), *longer)
    assert undisturbed.returncode == 0, undisturbed.stderr
    command = [warm_python, "toy_examples/run.py", "--distribution", "spiral", "--out", str(tmp_path / "broken")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, *longer], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "broken" / "spiral" / "latents" / "log.jsonl"
    deadline = time.monotonic() + 120
    while (not log.is_file() or log.read_text().count("\n") < 3) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "run the same command again" in stderr
    assert not (tmp_path / "broken" / "spiral" / "latents" / "result.json").is_file()
    again = run("--distribution", "spiral", "--out", str(tmp_path / "broken"), *longer)
    assert again.returncode == 0, again.stderr
    whole, resumed = (
        load_file(tmp_path / which / "spiral" / "latents" / "latents.safetensors") for which in ("whole", "broken")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_all_distributions_are_drawn_on_one_sheet_each(tmp_path: Path, run: Run) -> None:
    result = run("--distribution", "all", "--out", str(tmp_path), *TINY, "--steps", "2", "--latent-steps", "2")
    assert result.returncode == 0, result.stderr
    widths = [Image.open(tmp_path / f"figure{number}.png").size for number in (5, 6)]
    assert all(height > width for width, height in widths)
    assert result.stdout.splitlines()[-len(ROWS) - 2].split() == list(DISTRIBUTIONS)


def test_the_objectives_preset_changes_the_latents_and_nothing_else() -> None:
    plain, compared = (config_of(parse(["--preset", name])) for name in ("default", "objectives"))
    assert plain.flow == compared.flow and plain.map == compared.map and plain.latents != compared.latents
    assert plain.latents.train == compared.latents.train and compared.latents.online.t_growth_updates == 400


def test_the_paper_preset_is_the_papers_setting() -> None:
    config = config_of(parse(["--preset", "paper"]))
    flow, latents = config.flow, config.latents
    assert (flow.width, flow.depth, flow.train.steps, flow.train.global_batch, flow.optim.lr) == (
        512,
        4,
        100_000,
        256,
        1e-4,
    )
    assert (flow.pairs, flow.group_size, flow.stable_target) == (1, 1, False)
    assert (latents.train.global_batch, latents.train.steps, latents.optim.lr) == (1000, 5000, 1e-2)
    for optim in (flow.optim, latents.optim):
        assert (optim.betas, optim.weight_decay, optim.schedule, optim.warmup_steps) == (
            (0.9, 0.999),
            0.0,
            "constant",
            0,
        )
        assert (optim.clip_norm, optim.ema_decay) == (0.0, 0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch has GNU's OpenMP on Linux")
@pytest.mark.parametrize(
    "own, spins", [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_threads_that_wait_sleep_after_microseconds_unless_the_user_says_otherwise(
    own: dict[str, str], spins: str
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **own}
    command = [sys.executable, "toy_examples/run.py", "--help"]
    told = ""
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:  # OpenMP speaks while PyTorch is imported, and the rest is not waited for
            told += line
            if "GOMP_SPINCOUNT" in line:
                break
        process.kill()
    assert f"GOMP_SPINCOUNT = '{spins}'" in told, told[-2000:]
