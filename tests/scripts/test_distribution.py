"""An autoencoder that hands over to distribution alignment: its online flow in checkpoints, over processes, and in the log."""

import json
import math
import shutil

import pytest

from runs import kill_once_it_has_saved, losses, read

WORDS = [
    "regulariser.flow.objective=distribution",
    "regulariser.flow.weight=0.5",
    "regulariser.flow.start_step=3",
    "regulariser.flow.ramp_steps=4",
    "regulariser.flow.opening_weight=0.2",
    "regulariser.flow.online.optim.lr=0.01",
]


def rows(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "ae" / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def aligned(pipeline, scripts, tmp_path_factory):
    """One process, uninterrupted."""
    run_dir = tmp_path_factory.mktemp("distribution") / "run"
    shutil.copytree(pipeline.run_dir / "flowhead", run_dir / "flowhead")
    result = scripts.run("train_ae", *WORDS, run_dir=run_dir)
    assert result.returncode == 0, result.stderr
    return run_dir


def test_the_log_has_the_online_flows_loss_and_lag_and_the_latents_distance_to_the_target(aligned):
    steps = [row for row in rows(aligned) if "online_loss" in row]
    assert [row["step"] for row in steps] == [5, 10, 12]
    assert all(math.isfinite(row["online_lag"]) and row["online_loss"] > 0 for row in steps)
    assert all(row["flow"] > 0 for row in steps[1:])
    assert steps[0]["weighted/flow"] < 0.5 * steps[0]["flow"] and steps[-1]["weighted/flow"] == pytest.approx(
        0.5 * steps[-1]["flow"]
    )
    [last] = [row for row in rows(aligned) if row["step"] == 12 and "psnr" in row]
    assert last["latent_sliced_wasserstein"] > last["latent_sliced_wasserstein_floor"] > 0 and last["target_std"] > 0
    about = read(aligned / "ae" / "autoencoder" / "config.json")["about"]
    assert about["regularisers"][0]["objective"] == "distribution"


def test_in_the_crossing_the_log_has_the_opening_as_well(aligned):
    steps = [row for row in rows(aligned) if "online_loss" in row]
    assert steps[0]["flow_opening"] > 0 and not any("flow_opening" in row for row in steps[2:])


def test_a_run_killed_in_the_crossing_goes_on_with_its_online_flow_and_ends_with_the_same_bits(
    aligned, scripts, tmp_path
):
    shutil.copytree(aligned / "flowhead", tmp_path / "flowhead")
    checkpoint = tmp_path / "ae" / "checkpoints" / "step_00000005"
    kill_once_it_has_saved(scripts.command("train_ae", *WORDS, run_dir=tmp_path), checkpoint)
    assert (checkpoint / "online_flow.pt").is_file()
    resumed = scripts.run("train_ae", *WORDS, run_dir=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    results = [read(run / "ae" / "result.json")["fingerprint"] for run in (aligned, tmp_path)]
    assert results[0] == results[1]


def test_two_processes_and_accumulation_train_what_one_process_does(aligned, scripts, tmp_path):
    shutil.copytree(aligned / "flowhead", tmp_path / "flowhead")
    together = scripts.run("train_ae", *WORDS, "train.accumulation=2", run_dir=tmp_path, NPROC="2")
    assert together.returncode == 0, together.stderr
    assert losses(tmp_path, "ae") == pytest.approx(losses(aligned, "ae"), rel=1e-5)
    for name in ("online_loss", "online_lag"):
        one, two = ([row[name] for row in rows(run) if name in row] for run in (aligned, tmp_path))
        assert two == pytest.approx(one, rel=1e-4)
