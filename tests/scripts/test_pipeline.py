import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from flowprior.flow.prior import FlowPrior
from runs import kill_once_it_has_saved, losses, read
from tokenizer.autoencoder import Autoencoder

STAGES = [("train_flowhead", "flowhead"), ("train_ae", "ae"), ("train_mar", "mar"), ("train_sit", "sit")]
NEEDS = {"flowhead": [], "ae": ["flowhead"], "mar": ["ae", "latents"], "sit": ["ae", "latents"]}


def copy_needed(pipeline, stage, folder):
    """What a stage needs of those before it, from the pipeline's run to the run in ``folder``."""
    for needed in NEEDS[stage]:
        shutil.copytree(pipeline.run_dir / needed, folder / needed)


def test_the_stages_leave_everything_that_the_next_ones_and_the_report_read(pipeline):
    run = pipeline.run_dir
    prior, autoencoder = FlowPrior.load(run / "flowhead" / "prior"), Autoencoder.load(run / "ae" / "autoencoder")
    assert prior.fingerprint == pipeline.result("flowhead")["fingerprint"]
    assert autoencoder.fingerprint == pipeline.result("ae")["fingerprint"]
    assert autoencoder.about["prior"] == prior.fingerprint
    manifest, generator = read(run / "latents" / "manifest.json"), read(run / "mar" / "generator" / "config.json")
    assert manifest["origin"]["autoencoder"] == generator["about"]["autoencoder"] == autoencoder.fingerprint
    assert generator["fingerprint"] == pipeline.result("mar")["fingerprint"]
    assert manifest["count"] == 1797 and len(manifest["shards"]) == 3
    for stage in ("flowhead", "ae", "mar", "sit"):
        assert (run / stage / "config.yaml").is_file()
        assert all(row["step"] <= 12 for row in map(json.loads, (run / stage / "log.jsonl").read_text().splitlines()))
        assert pipeline.result(stage)["seconds"] > 0
    for stage in ("ae", "mar", "sit"):
        assert list((run / stage / "pictures").glob("*.png"))


def test_the_cached_scale_is_that_of_the_cached_latents_and_what_the_generator_carries(pipeline):
    run = pipeline.run_dir
    latents = np.concatenate(
        [load_file(file)["latents"] for file in sorted((run / "latents").glob("*.safetensors"))]
    ).astype(np.float64)
    scale = read(run / "latents" / "manifest.json")["statistics"]["scale"]
    assert scale == pytest.approx(1 / latents.std(ddof=1), rel=1e-9)
    carried = load_file(run / "mar" / "generator" / "model.safetensors")["normaliser.scale"]
    np.testing.assert_allclose(carried, scale, rtol=1e-6)


@pytest.mark.parametrize("cfg", ["1", "2"])
def test_samples_are_whole_and_their_evaluation_says_how_they_were_made(pipeline, cfg):
    samples = pipeline.run_dir / "mar" / "samples"
    with np.load(samples / f"cfg_{cfg}.npz", allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (40, 32, 32, 3) and arrays["arr_0"].dtype == np.uint8
        assert arrays["labels"].tolist() == [i % 10 for i in range(40)]
    evaluation = read(pipeline.run_dir / "mar" / "evaluation.json")
    assert {"fid", "inception_score", "precision", "recall", "recognised"} <= set(evaluation["metrics"][cfg])
    protocol = evaluation["protocol"]["samples"][cfg]
    assert protocol == read(samples / f"cfg_{cfg}.json")["protocol"] | {
        "size": "32 x 32",
        "crop": "none",
        "classes": "10, of 4 images each",
        "total variation to the reference's": 0.006,
    }
    assert protocol["count"] == 40 and protocol["generator"] == pipeline.result("mar")["fingerprint"]


def test_a_second_generator_takes_the_latents_of_the_first_and_draws_the_classes_that_are_asked_for(pipeline):
    assert "latents: complete" in pipeline.outputs["train_sit"].stdout
    run = pipeline.run_dir
    generator = read(run / "sit" / "generator" / "config.json")
    assert (
        generator["generator"]["sit"]["width"] == 32
        and generator["fingerprint"] == pipeline.result("sit")["fingerprint"]
    )
    assert read(run / "sit" / "inputs.json") == read(run / "mar" / "inputs.json")
    for cfg in ("1", "2"):
        with np.load(run / "sit" / "samples" / f"cfg_{cfg}.npz", allow_pickle=False) as arrays:
            assert arrays["arr_0"].shape == (40, 32, 32, 3) and arrays["labels"].tolist() == [i % 10 for i in range(40)]
        assert {"fid", "precision", "recognised"} <= set(read(run / "sit" / "evaluation.json")["metrics"][cfg])


def test_the_autoencoder_is_evaluated_on_every_image(pipeline):
    evaluation = read(pipeline.run_dir / "ae" / "evaluation.json")
    assert {"psnr", "ssim", "rfid"} <= set(evaluation["metrics"]) and evaluation["protocol"]["count"] == 1797


def test_no_temporary_file_is_left(pipeline):
    assert [f for f in pipeline.run_dir.rglob("*") if f.name.startswith(".") or f.suffix == ".tmp"] == []


@pytest.mark.parametrize(
    "name, words",
    [
        ("train_flowhead", ["flowhead"]),
        ("train_ae", ["ae", "evaluation of the autoencoder"]),
        ("train_mar", ["latents", "mar", "samples, cfg 1", "samples, cfg 2", "evaluation of the generator"]),
        ("train_sit", ["latents", "sit", "samples, cfg 1", "samples, cfg 2", "evaluation of the generator"]),
    ],
)
def test_run_again_every_stage_says_that_it_is_complete_and_touches_nothing(pipeline, scripts, snapshot, name, words):
    before = snapshot(pipeline.run_dir)
    again = scripts.run(name, run_dir=pipeline.run_dir)
    assert again.returncode == 0, again.stderr
    assert [line.split(": complete")[0] for line in again.stdout.splitlines() if ": complete (" in line] == words
    assert snapshot(pipeline.run_dir) == before


@pytest.mark.parametrize(
    "name, word, stage",
    [
        ("train_flowhead", "width=32", "flowhead"),
        ("train_ae", "optim.lr=0.5", "ae"),
        ("train_mar", "train.seed=3", "mar"),
        ("train_sit", "model.sit.time_shift=2", "sit"),
    ],
)
def test_other_options_in_the_folder_of_a_run_are_refused(pipeline, scripts, snapshot, name, word, stage):
    before = snapshot(pipeline.run_dir)
    refused = scripts.run(name, word, run_dir=pipeline.run_dir)
    assert refused.returncode == 2
    [line] = refused.stderr.splitlines()
    assert word.split("=")[0] in line and str(pipeline.run_dir / stage) in line and "run_dir=" in line
    assert snapshot(pipeline.run_dir) == before


def test_a_run_may_be_moved(pipeline, scripts, tmp_path):
    shutil.copytree(pipeline.run_dir / "flowhead", tmp_path / "flowhead")
    again = scripts.run("train_flowhead", run_dir=tmp_path)
    assert again.returncode == 0 and "complete" in again.stdout


def test_options_that_change_no_result_are_taken(pipeline, scripts):
    again = scripts.run("train_flowhead", "train.log_steps=1", "train.loader_workers=1", run_dir=pipeline.run_dir)
    assert again.returncode == 0 and "complete" in again.stdout


@pytest.mark.parametrize("name, stage", STAGES)
def test_a_killed_stage_goes_on_and_ends_with_the_same_bits(pipeline, scripts, tmp_path, name, stage):
    copy_needed(pipeline, stage, tmp_path)
    kill_once_it_has_saved(scripts.command(name, run_dir=tmp_path), tmp_path / stage / "checkpoints" / "step_00000005")
    assert not (tmp_path / stage / "result.json").exists()
    resumed = scripts.run(name, run_dir=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert read(tmp_path / stage / "result.json")["fingerprint"] == pipeline.result(stage)["fingerprint"]
    steps = [
        row["step"]
        for row in map(json.loads, (tmp_path / stage / "log.jsonl").read_text().splitlines())
        if "loss" in row
    ]
    assert steps == [5, 10, 12]


def test_a_changed_autoencoder_makes_the_cache_refused(pipeline, scripts, tmp_path):
    for needed in ("flowhead", "latents"):
        shutil.copytree(pipeline.run_dir / needed, tmp_path / needed)
    other = Autoencoder.load(pipeline.run_dir / "ae" / "autoencoder")
    next(other.parameters()).data.add_(1)
    other.save(tmp_path / "ae" / "autoencoder")
    refused = scripts.run("train_mar", run_dir=tmp_path)
    assert refused.returncode == 2 and "autoencoder" in refused.stderr and str(tmp_path / "latents") in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "mar").exists()


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: data[:3000] + bytes([data[3000] ^ 1]) + data[3001:]],
    ids=["truncated", "bit flipped"],
)
def test_a_damaged_shard_stops_the_generator_before_its_first_step(pipeline, scripts, tmp_path, damage):
    for needed in ("ae", "latents"):
        shutil.copytree(pipeline.run_dir / needed, tmp_path / needed)
    shard = tmp_path / "latents" / "latents-00001.safetensors"
    shard.write_bytes(damage(shard.read_bytes()))
    refused = scripts.run("train_mar", run_dir=tmp_path)
    assert refused.returncode == 2 and str(shard) in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 and not (tmp_path / "mar").exists()


@pytest.mark.parametrize("name, stage", [stage for stage in STAGES if stage != ("train_mar", "mar")])
def test_two_processes_under_torchrun_train_what_one_does(pipeline, scripts, tmp_path, name, stage):
    copy_needed(pipeline, stage, tmp_path)
    together = scripts.run(name, run_dir=tmp_path, NPROC="2")
    assert together.returncode == 0, together.stderr
    assert losses(tmp_path, stage) == pytest.approx(losses(pipeline.run_dir, stage), rel=1e-5)
    # Sums over two processes round differently: equal bits would mean that there was one.
    assert read(tmp_path / stage / "result.json")["fingerprint"] != pipeline.result(stage)["fingerprint"]


def test_two_processes_train_the_generator_that_one_does_but_for_its_dropout(pipeline, scripts, tmp_path):
    for processes in ("1", "2"):
        for needed in ("ae", "latents"):
            shutil.copytree(pipeline.run_dir / needed, tmp_path / processes / needed)
        trained = scripts.run(
            "train_mar", "model.mar.dropout=0", "sample.cfg=[1]", run_dir=tmp_path / processes, NPROC=processes
        )
        assert trained.returncode == 0, trained.stderr
    assert losses(tmp_path / "2", "mar") == pytest.approx(losses(tmp_path / "1", "mar"), rel=1e-5)


def test_two_processes_cache_and_sample_what_one_does(pipeline, scripts, tmp_path):
    shutil.copytree(pipeline.run_dir / "ae", tmp_path / "ae")
    shutil.copytree(
        pipeline.run_dir / "mar", tmp_path / "mar", ignore=shutil.ignore_patterns("samples", "evaluation.json")
    )
    together = scripts.run("train_mar", "sample.batch=7", run_dir=tmp_path, NPROC="2")
    assert together.returncode == 0, together.stderr
    assert read(tmp_path / "latents" / "manifest.json") == read(pipeline.run_dir / "latents" / "manifest.json")
    for cfg in ("1", "2"):
        one, two = (np.load(run / "mar" / "samples" / f"cfg_{cfg}.npz") for run in (pipeline.run_dir, tmp_path))
        assert np.array_equal(one["labels"], two["labels"])
        assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1
    one, two = (read(run / "mar" / "evaluation.json")["metrics"]["2"] for run in (pipeline.run_dir, tmp_path))
    assert two == pytest.approx(one, rel=1e-2)


@pytest.mark.parametrize("words", [["train.global_batch=15"], ["optim.lr=-1"], []])
def test_a_mistake_under_torchrun_is_said_once_with_exit_code_2(scripts, tmp_path, words):
    answer = scripts.run("train_ae", *words, run_dir=tmp_path / "run", NPROC="2")
    assert answer.returncode == 2
    assert sum(line.startswith("error: ") for line in answer.stderr.splitlines()) == 1
    assert not (tmp_path / "run" / "ae" / "checkpoints").exists()


def test_the_first_stage_runs_in_an_interpreter_of_ones_own(pipeline, scripts, tmp_path):
    """Everything else here forks from a process with the imports done; this one starts from nothing."""
    alone = scripts.run("train_flowhead", run_dir=tmp_path, PYTHON=sys.executable)
    assert alone.returncode == 0, alone.stderr
    assert read(tmp_path / "flowhead" / "result.json")["fingerprint"] == pipeline.result("flowhead")["fingerprint"]
