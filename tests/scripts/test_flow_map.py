"""The head's flow map as a stage of ``scripts/train_mar.sh``."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flowprior.run.files import read_json, tensors_fingerprint, write_json
from runs import kill_once_it_has_saved, losses, read
from scripts.compare_samplers import table

ROOT = Path(__file__).resolve().parents[2]
SAMPLED = ["model.mar.sampler={ar_steps: 2, head_steps: 3, head: map, head_evaluations: 2}"]
WORDS = [
    *SAMPLED,
    "distil={jumps: 2, solver_steps: 3}",
    "distil.train={steps: 12, global_batch: 16, checkpoint_steps: 5, eval_steps: 5, log_steps: 5}",
    "distil.optim={lr: 1e-3, warmup_steps: 2}",
]


def with_generator(pipeline, folder):
    """A run folder whose generator is trained, and not sampled from."""
    for needed in ("ae", "latents"):
        shutil.copytree(pipeline.run_dir / needed, folder / needed)
    shutil.copytree(
        pipeline.run_dir / "mar", folder / "mar", ignore=shutil.ignore_patterns("samples", "evaluation.json")
    )
    return folder


@pytest.fixture(scope="module")
def distilled(pipeline, scripts, tmp_path_factory):
    folder = with_generator(pipeline, tmp_path_factory.mktemp("distilled") / "run")
    made = scripts.run("train_mar", *WORDS, run_dir=folder)
    assert made.returncode == 0, made.stderr
    return folder


def test_where_samples_are_drawn_by_it_the_head_is_distilled_and_the_protocols_name_the_map(distilled):
    result, saved = read(distilled / "mar/flow_map/result.json"), read(distilled / "mar/flow_map/map/config.json")
    generator = read(distilled / "mar/generator/config.json")["fingerprint"]
    assert saved["generator"] == generator and saved["fingerprint"] == result["fingerprint"]
    assert {"error_of_1", "error_of_2", "error_of_4", "seconds"} <= result.keys()
    evaluation = read(distilled / "mar/evaluation.json")["protocol"]["samples"]
    for cfg in ("1", "2"):
        made_by = read(distilled / f"mar/samples/cfg_{cfg}.json")["protocol"]
        assert made_by["flow map"] == evaluation[cfg]["flow map"] == saved["fingerprint"]


def test_without_that_no_map_is_made_and_no_protocol_names_one(pipeline):
    assert not (pipeline.run_dir / "mar" / "flow_map").exists()
    assert "flow map" not in read(pipeline.run_dir / "mar/samples/cfg_1.json")["protocol"]


def test_run_again_the_stage_says_that_it_is_complete_and_touches_nothing(distilled, scripts, snapshot):
    before = snapshot(distilled)
    again = scripts.run("train_mar", *WORDS, run_dir=distilled)
    assert again.returncode == 0, again.stderr
    said = [line.split(": complete")[0] for line in again.stdout.splitlines() if ": complete (" in line]
    assert said == ["latents", "mar", "flow_map", "samples, cfg 1", "samples, cfg 2", "evaluation of the generator"]
    assert snapshot(distilled) == before


def test_other_options_of_it_are_refused_and_those_of_the_generators_training_are_not_its_own(
    distilled, scripts, snapshot
):
    before = snapshot(distilled)
    refused = scripts.run("train_mar", *WORDS, "distil.optim.lr=0.5", run_dir=distilled)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "lr" in refused.stderr and str(distilled / "mar/flow_map") in refused.stderr
    assert snapshot(distilled) == before


def test_killed_it_goes_on_and_ends_with_the_same_bits(pipeline, distilled, scripts, tmp_path):
    folder = with_generator(pipeline, tmp_path / "run")
    kill_once_it_has_saved(
        scripts.command("train_mar", *WORDS, run_dir=folder), folder / "mar/flow_map/checkpoints/step_00000005"
    )
    assert not (folder / "mar/flow_map/result.json").exists()
    resumed = scripts.run("train_mar", *WORDS, run_dir=folder)
    assert resumed.returncode == 0, resumed.stderr
    wanted, found = (run / "mar/flow_map/result.json" for run in (distilled, folder))
    assert read(found)["fingerprint"] == read(wanted)["fingerprint"]
    assert losses(folder, "mar/flow_map") == losses(distilled, "mar/flow_map")


def test_two_processes_distil_and_sample_what_one_does(pipeline, distilled, scripts, tmp_path):
    folder = with_generator(pipeline, tmp_path / "run")
    together = scripts.run("train_mar", *WORDS, run_dir=folder, NPROC="2")
    assert together.returncode == 0, together.stderr
    assert losses(folder, "mar/flow_map") == pytest.approx(losses(distilled, "mar/flow_map"), rel=1e-5)
    one, two = (np.load(run / "mar/samples/cfg_2.npz")["arr_0"].astype(int) for run in (distilled, folder))
    assert np.abs(one - two).max() <= 1


def refused(result) -> str:
    assert result.returncode == 2 and "Traceback" not in result.stderr
    [line] = result.stderr.splitlines()
    return line


@pytest.fixture
def commands(scripts, tmp_path, distilled):
    """A copy of the distilled run, and its commands one by one."""
    folder = shutil.copytree(distilled, tmp_path / "run")

    def call(name: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [scripts.python, "-m", f"mar.{name}", *scripts.tiny_options["train_mar"], *WORDS, f"run_dir={folder}"],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": scripts.python},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return folder, call


def test_a_map_without_its_head_is_refused(commands):
    folder, call = commands
    shutil.rmtree(folder / "mar/generator")
    for name in ("distil_head", "generate"):
        assert str(folder / "mar/generator") in refused(call(name))


@pytest.mark.parametrize("name", ["generate", "evaluate"])
def test_samples_by_a_map_that_is_not_there_are_refused_with_what_to_run(commands, name):
    folder, call = commands
    shutil.rmtree(folder / "mar/flow_map")
    line = refused(call(name))
    assert "mar distil_head" in line and "head=flow" in line and str(folder / "mar/flow_map") in line


def retrain(folder) -> None:
    """Another generator in place of the run's."""
    file = folder / "mar/generator/model.safetensors"
    tensors = load_file(file)
    tensors["model.head.input.bias"] += 1
    save_file(tensors, file)
    config = read_json(file.with_name("config.json"), "generator")
    write_json(file.with_name("config.json"), config | {"fingerprint": tensors_fingerprint(tensors)})


@pytest.mark.parametrize("name", ["generate", "evaluate", "distil_head"])
def test_a_map_of_a_head_that_was_trained_again_is_refused_with_what_to_delete(commands, name, snapshot):
    folder, call = commands
    retrain(folder)
    before = snapshot(folder)
    line = refused(call(name))
    assert "another generator" in line and f"delete {folder / 'mar/flow_map'}" in line
    assert snapshot(folder) == before


def test_samples_by_another_map_are_stale(commands):
    folder, call = commands
    file = folder / "mar/flow_map/map/model.safetensors"
    tensors = load_file(file)
    tensors["span_embed.2.bias"] += torch.tensor(0.5)
    save_file(tensors, file)
    config = read_json(file.with_name("config.json"), "map")
    write_json(file.with_name("config.json"), config | {"fingerprint": tensors_fingerprint(tensors)})
    assert "mar generate" in refused(call("evaluate"))
    again = call("generate")
    assert again.returncode == 0 and "complete" not in again.stdout


def test_samplers_are_compared_on_the_sets_that_the_commands_draw_and_each_is_measured_once(
    distilled, scripts, tmp_path
):
    kept, picture = tmp_path / "samplers.json", tmp_path / "curve.png"

    def compare() -> subprocess.CompletedProcess:
        return subprocess.run(
            [scripts.python, "scripts/compare_samplers.py", distilled, *scripts.tiny_options["train_mar"], *WORDS]
            + ["--cases", "curve", "--only", "map 2", "euler 1", "--cfg", "1", "2", "--json", kept, "--draw", picture],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": scripts.python, "PYTHONPATH": "."},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
        )

    first = compare()
    assert first.returncode == 0, first.stderr
    results, evaluated = read(kept), read(distilled / "mar/evaluation.json")["metrics"]
    for cfg in ("1", "2"):
        assert results["map 2"][cfg]["runs"]["run"]["fid"] == pytest.approx(evaluated[cfg]["fid"], rel=1e-4)
        assert results["map 2"][cfg]["gflop"] > results["euler 1"][cfg]["gflop"] > 0
    assert "| map 2 | 2 |" in first.stdout and picture.stat().st_size > 5000
    again = compare()
    assert again.returncode == 0 and again.stdout == first.stdout and not again.stderr
    assert read(kept) == results


def test_no_ratio_is_formed_to_a_plain_sampler_that_was_measured_with_other_options(capsys):
    def case(fid, *words):
        metrics = {"fid": fid, "precision": 0.5, "recall": 0.5, "recognised": 0.5, "cpu_seconds": 1.0}
        made_from = {"made_from": ["0123abcd", *words]} if words else {}
        return {"1": {"runs": {"run": metrics | made_from}, "gflop": 1, "times_faster": [1]}}

    whole, few = ["--preset digits"], ["--preset digits", "sample.count=200"]
    cases = {"plain": case(0.05, *whole), "like": case(0.1, *whole), "few": case(0.15, *few), "of before": case(0.2)}
    assert [row.split(" | ")[3] for row in table(cases).splitlines()[2:]] == ["1.000", "2.000", "", "4.000"]
    said = capsys.readouterr().err
    assert said.count("no ratio of 1 runs") == 1 and "few, guidance 1" in said
