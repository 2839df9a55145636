"""Stage 1 on each source of targets, by its script; the timm source in several processes and through a kill."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

SHORT = [
    "channels=4",
    "width=16",
    "depth=1",
    "group_size=4",
    "train.steps=4",
    "train.global_batch=16",
    "train.eval_steps=2",
]
SHORT += ["train.checkpoint_steps=2", "train.log_steps=2", "optim.warmup_steps=1"]
TIMM = ["target.source=timm", "target.timm.model=test_vit", "target.timm.pretrained=false", "target.timm.tokens=2"]


def run(scripts, run_dir, *words, **variables):
    return scripts.run("train_flowhead", *SHORT, *words, run_dir=run_dir, tiny=False, **variables)


def result(run_dir) -> dict:
    return json.loads((run_dir / "flowhead" / "result.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def alone(scripts, tmp_path_factory):
    """One process, one go: what the others are compared with."""
    run_dir = tmp_path_factory.mktemp("alone")
    answer = run(scripts, run_dir, *TIMM, "target.timm.batch=8", "held_out=0.1")
    assert answer.returncode == 0, answer.stderr
    return run_dir


def table(run_dir) -> np.ndarray:
    return np.load(run_dir / "flowhead" / "target_features.npy")


def test_two_processes_under_torchrun_make_the_table_that_one_makes(scripts, tmp_path, alone):
    words = [*TIMM, "target.timm.batch=8", "held_out=0.1", "train.loader_workers=1"]
    together = run(scripts, tmp_path, *words, NPROC="2")
    assert together.returncode == 0, together.stderr
    assert table(alone).shape == (1797 * 2, 64) and np.array_equal(table(tmp_path), table(alone))
    assert result(tmp_path)["target"] == result(alone)["target"]


def test_a_killed_extraction_goes_on_and_ends_with_the_same_table_and_the_same_prior(scripts, tmp_path, alone):
    words = [*SHORT, *TIMM, "target.timm.batch=8", "held_out=0.1"]
    command = scripts.command("train_flowhead", *words, run_dir=tmp_path, tiny=False)
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=os.setpgrp)
    marks, deadline = tmp_path / "flowhead" / "target_features.done", time.monotonic() + 120
    while not marks.exists() or 1 not in marks.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 in marks.read_bytes() and not (tmp_path / "flowhead" / "config.yaml").exists()
    first = table(tmp_path)[: 256 * 2]
    again = subprocess.run(**command, capture_output=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert np.array_equal(table(tmp_path), table(alone)) and np.array_equal(first, table(alone)[: 256 * 2])
    assert result(tmp_path)["fingerprint"] == result(alone)["fingerprint"]


def test_the_stage_says_what_the_target_is_and_logs_how_the_prior_fits_it(scripts, tmp_path, alone):
    about = result(alone)
    assert about["compared_with"] == "held-out rows" and about["normalisation"]["count"] == 1797 * 2
    assert (
        about["normalisation"]["feature_channels"] == 64 and len(about["normalisation"]["projected_channel_std"]) == 4
    )
    rows = [json.loads(line) for line in (alone / "flowhead" / "log.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "held_out_loss" in row]
    names = {"loss", "mean_error", "covariance_error", "sliced_wasserstein", "sliced_wasserstein_floor"}
    assert [row["step"] for row in measured] == [2, 4]
    assert all(set(row) == {"step"} | {f"held_out_{name}" for name in names} for row in measured)
    assert measured[-1]["held_out_loss"] == pytest.approx(about["held_out_loss"], rel=1e-5)
    assert len(list((alone / "flowhead" / "pictures").glob("prior_*.png"))) == 2
    projected = load_file(alone / "flowhead" / "target_samples.safetensors")["samples"]
    np.testing.assert_allclose(about["normalisation"]["projected_std"], projected.std(), rtol=1e-3)


def test_a_folder_of_images_is_what_the_timm_source_takes_features_of(scripts, tmp_path):
    for i in range(5):
        (tmp_path / "images" / "one").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 40 * i, dtype=np.uint8)).save(tmp_path / "images" / "one" / f"{i}.png")
    answer = run(scripts, tmp_path, *TIMM, DATA=str(tmp_path / "images"))
    assert answer.returncode == 0, answer.stderr
    assert table(tmp_path).shape == (10, 64)
    shown = [line for line in answer.stdout.splitlines() if line.startswith("target test_vit patch features: 10 x 64")]
    assert len(shown) == 1 and "scale 1/std" in shown[0] and "norm of the mean" in shown[0]


@pytest.mark.parametrize(
    "preset, words, shape",
    [
        ("digits_textual", ["target.word_vectors.channels=16"], (None, 16)),
        ("digits_discrete", ["target.codebook.clusters=24", "target.codebook.iterations=2"], (24, 192)),
        (
            "digits_lowlevel",
            [f"target.digits_lowlevel.{word}" for word in ("steps=2", "width=24", "depth=1", "tokens=3", "channels=6")],
            (1797 * 3, 6),
        ),
    ],
)
def test_every_kind_of_embedded_target_is_one_command(scripts, tmp_path, preset, words, shape):
    answer = run(scripts, tmp_path, *words, PRESET=preset)
    assert answer.returncode == 0, answer.stderr
    about = result(tmp_path)["normalisation"]
    assert about["count"] == (shape[0] or about["count"]) and about["feature_channels"] == shape[1]
    if preset == "digits_lowlevel":
        again = run(scripts, tmp_path, *words, PRESET=preset)
        assert again.returncode == 0 and "flowhead: complete" in again.stdout


@pytest.mark.parametrize(
    "words, part",
    [
        (["target.source=hf_embedding", "target.hf_embedding.folder=nowhere"], "nowhere"),
        (["target.source=timm", "target.timm.weights=nowhere.pth"], "nowhere.pth"),
        (["times.distribution=logit"], "logit_normal"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_nothing_is_written(scripts, tmp_path, words, part):
    answer = run(scripts, tmp_path / "run", *words)
    assert answer.returncode == 2
    [line] = answer.stderr.splitlines()
    assert line.startswith("error: ") and part in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("key, part", [("bogus", "table, vector"), ("vector", "shape (N, d)")])
def test_a_key_that_is_not_in_the_file_and_a_shape_that_is_no_table_are_refused(scripts, tmp_path, key, part):
    np.savez(tmp_path / "mine.npz", table=np.ones((4, 3), np.float32), vector=np.ones(3, np.float32))
    answer = run(scripts, tmp_path / "run", f"target.file.key={key}", DATA=str(tmp_path / "mine.npz"))
    assert answer.returncode == 2 and not (tmp_path / "run").exists()
    [line] = answer.stderr.splitlines()
    assert line.startswith("error: ") and part in line and "mine.npz" in line


def test_logit_normal_times_are_an_option_of_the_run(scripts, tmp_path):
    words = ["target.source=word_vectors", "target.word_vectors.channels=8"]
    answer = run(scripts, tmp_path, *words, "times.distribution=logit_normal", "times.mean=0.5")
    assert answer.returncode == 0, answer.stderr
    refused = run(scripts, tmp_path, *words)
    assert refused.returncode == 2 and "times.distribution: logit_normal -> uniform" in refused.stderr
