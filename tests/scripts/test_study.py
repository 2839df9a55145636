"""A study of toy size on the digits: stopped by a signal, gone on with, skipped where a file is there, refused where that is another's."""

import json
import os
import shlex
import signal
import subprocess
import time

import pytest

from study.page import END, START

TABLE = """
preset: digits
options:
  prior: {prior}
  autoencoder: {autoencoder}
  sit: {sit}
lengths:
  tiny: {{options: train.steps=6}}
targets:
  semantic: {{preset: digits}}
rows:
  aligned: {{target: semantic, options: "regulariser.flow.weight=0.01"}}
"""


def write_table(file, tiny, steps, lr=1e-3):
    words = {
        "prior": [*tiny["train_flowhead"], f"train.steps={steps}", "train.eval_steps=0", "train.checkpoint_steps=10"],
        "autoencoder": [*tiny["train_ae"], f"optim.lr={lr}"],
        "sit": [*tiny["train_sit"], "train.steps=6", "evaluate.metrics=[fid]", "evaluate.half_half_splits=0"],
    }
    file.write_text(TABLE.format(**{stage: json.dumps(shlex.join(options)) for stage, options in words.items()}))


@pytest.fixture
def study(scripts, tmp_path):
    """Starts the study as a person does; its table, runs and results lie in the test's folder."""

    def start(*words):
        places = ["--data", tmp_path / "toy.yaml", "--runs", tmp_path / "runs", "--results", tmp_path / "results"]
        command = scripts.command("study", *map(str, places), "--seeds", "1", "--jobs", "2", *words, tiny=False)
        return subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)

    return start


def ended(process):
    out, errors = process.communicate(timeout=240)
    return process.returncode, out, errors


def test_a_study_that_a_signal_stops_goes_on_and_keeps_its_cells_which_are_skipped_and_refused_as_they_say(
    study, scripts, tmp_path
):
    write_table(tmp_path / "toy.yaml", scripts.tiny_options, steps=400)
    process, checkpoints = study(), tmp_path / "runs" / "prior_semantic_seed1" / "flowhead" / "checkpoints"
    while not list(checkpoints.glob("step_*/manifest.json")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    code, out, errors = ended(process)
    assert code == 143 and "run the same command again to go on" in errors, errors
    assert "1 cells and 1 flow priors: about" in out
    log = tmp_path / "runs" / "prior_semantic_seed1" / "study.log"
    assert "stopped after step" in log.read_text() and not (tmp_path / "results").exists()

    reached = max(int(folder.name[5:]) for folder in checkpoints.glob("step_*"))
    code, out, errors = ended(study())
    assert code == 0, out + errors
    assert f"going on from step {reached}" in log.read_text()
    file = tmp_path / "results" / "aligned_tiny_seed1.json"
    kept = json.loads(file.read_text())
    assert {"psnr", "rfid", "psnr_over_steps"} <= kept["figures"]["autoencoder"].keys()
    assert kept["figures"]["sit"]["by_guidance"].keys() == {"1", "2"}
    assert kept["made_from"]["prior"]["train"]["steps"] == 400 and kept["tflop"].keys() == {
        "prior",
        "autoencoder",
        "sit",
    }
    assert min(kept["tflop"].values()) > 0 and min(spent["seconds"] for spent in kept["spent"].values()) > 0
    assert "| aligned | 1 |" in out and START not in out and END not in out

    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    code, out, errors = ended(study())
    assert code == 0 and "1 cells, 1 finished" in out and "started" not in out, errors

    write_table(tmp_path / "toy.yaml", scripts.tiny_options, steps=400, lr=2e-3)
    before = file.read_bytes()
    code, out, errors = ended(study())
    assert code == 2 and "optim.lr: 0.001 -> 0.002" in errors and "--anew" in errors and file.read_bytes() == before
