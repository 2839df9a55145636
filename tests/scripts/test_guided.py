"""Guidance distilled into the transformer, as a stage of ``scripts/train_mar.sh``."""

import os
import shutil
import subprocess

import pytest
from safetensors.torch import load_file, save_file

from flowprior.run.files import read_json, tensors_fingerprint, write_json
from runs import kill_once_it_has_saved, losses, read

SAMPLED = "model.mar.sampler={ar_steps: 2, head_steps: 3, head: map, head_evaluations: 2, one_pass: true}"
TRAIN = "{steps: 12, global_batch: 16, checkpoint_steps: 5, eval_steps: 5, log_steps: 5}"
WORDS = [SAMPLED] + [
    word
    for section in ("distil", "distil_guidance")
    for word in (
        f"{section}={{jumps: 2, solver_steps: 3}}",
        f"{section}.train={TRAIN}",
        f"{section}.optim={{lr: 1e-3, warmup_steps: 2}}",
    )
]


@pytest.fixture(scope="module")
def guided(pipeline, scripts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("guided") / "run"
    for needed in ("ae", "latents"):
        shutil.copytree(pipeline.run_dir / needed, folder / needed)
    unsampled = shutil.ignore_patterns("samples", "evaluation.json")
    shutil.copytree(pipeline.run_dir / "mar", folder / "mar", ignore=unsampled)
    made = scripts.run("train_mar", *WORDS, run_dir=folder)
    assert made.returncode == 0, made.stderr
    return folder


def test_where_samples_are_drawn_in_one_pass_map_and_guidance_are_distilled_and_the_protocols_name_the_transformer(
    guided,
):
    result = read(guided / "mar/guided/result.json")
    saved = read(guided / "mar/guided/transformer/config.json")
    assert saved["generator"] == read(guided / "mar/generator/config.json")["fingerprint"]
    assert saved["fingerprint"] == result["fingerprint"] and {"error_of_1", "error_of_2"} <= result.keys()
    made_from = read(guided / "mar/guided/inputs.json")["flow map"]
    assert made_from == read(guided / "mar/flow_map/map/config.json")["fingerprint"]
    for cfg in ("1", "2"):
        made_by = read(guided / f"mar/samples/cfg_{cfg}.json")["protocol"]
        assert made_by["guided transformer"] == saved["fingerprint"] and "flow map" not in made_by


@pytest.fixture
def commands(scripts, tmp_path, guided):
    """A copy of the run, and its commands one by one."""
    folder = shutil.copytree(guided, tmp_path / "run")

    def call(name: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [scripts.python, "-m", "mar", name, *scripts.tiny_options["train_mar"], *WORDS, f"run_dir={folder}"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": scripts.python},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return folder, call


def test_killed_it_goes_on_and_ends_with_the_same_bits_and_is_complete_then(commands, guided, scripts):
    folder, call = commands
    shutil.rmtree(folder / "mar/guided")
    kill_once_it_has_saved(
        scripts.command("train_mar", *WORDS, run_dir=folder), folder / "mar/guided/checkpoints/step_00000005"
    )
    assert not (folder / "mar/guided/result.json").exists()
    resumed = call("distil_guidance")
    assert resumed.returncode == 0, resumed.stderr
    wanted, found = (read(run / "mar/guided/result.json") for run in (guided, folder))
    assert found["fingerprint"] == wanted["fingerprint"]
    assert losses(folder, "mar/guided") == losses(guided, "mar/guided")
    assert "guided: complete" in call("distil_guidance").stdout


def refused(result) -> str:
    assert result.returncode == 2 and "Traceback" not in result.stderr
    [line] = result.stderr.splitlines()
    return line


def test_without_the_map_it_is_refused_with_what_to_run_and_samples_need_no_map(commands):
    folder, call = commands
    shutil.rmtree(folder / "mar/flow_map")
    line = refused(call("distil_guidance"))
    assert "mar distil_head" in line and str(folder / "mar/flow_map") in line
    assert "complete" in call("generate").stdout


def test_samples_in_one_pass_without_it_are_refused_with_what_to_run(commands):
    folder, call = commands
    shutil.rmtree(folder / "mar/guided")
    for name in ("generate", "evaluate"):
        line = refused(call(name))
        assert "mar distil_guidance" in line and "one_pass=false" in line and str(folder / "mar/guided") in line


def changed(file) -> None:
    """Other weights in ``file``, and a config beside it that says so."""
    tensors = load_file(file)
    tensors[min(name for name in tensors if name.endswith("input.bias"))] += 1
    save_file(tensors, file)
    config = read_json(file.with_name("config.json"), "config")
    write_json(file.with_name("config.json"), config | {"fingerprint": tensors_fingerprint(tensors)})


def test_of_a_generator_that_was_trained_again_it_is_refused_with_what_to_delete(commands, snapshot):
    folder, call = commands
    changed(folder / "mar/generator/model.safetensors")
    before = snapshot(folder)
    for name in ("generate", "evaluate"):
        line = refused(call(name))
        assert "another generator" in line and f"delete {folder / 'mar/guided'}" in line
    assert "another generator" in refused(call("distil_guidance"))
    assert snapshot(folder) == before


def test_it_does_not_go_on_with_another_map(commands, snapshot):
    folder, call = commands
    changed(folder / "mar/flow_map/map/model.safetensors")
    before = snapshot(folder)
    line = refused(call("distil_guidance"))
    assert "another flow map" in line and f"delete {folder / 'mar/guided'}" in line
    assert snapshot(folder) == before
