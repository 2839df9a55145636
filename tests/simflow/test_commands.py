"""Both ways to a trained flow, with the commands that a person types: with the autoencoder, and on cached latents."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from flowprior.data.embedded import digit_images
from generation import commands
from simflow import __main__ as room
from simflow import evaluate_ae, train_simflow
from simflow.config import SimFlowStageConfig
from simflow.likelihood import trained_on
from tokenizer.autoencoder import Autoencoder

VIT = "{width: 12, depth: 1, heads: 3}"
FLOW = "{width: 12, heads: 2, depths: [1, 1]}"
SHORT = "train={steps: 12, global_batch: 16, eval_steps: 0, log_steps: 4, checkpoint_steps: 5, tensorboard: false}"
JOINT = [
    "data.subset=train",
    "model={image_size: 32, patch_size: 16, tokens: 4, channels: 4}",
    f"model.encoder={VIT}",
    f"model.decoder={VIT}",
    f"regulariser.simflow.flow={FLOW}",
    "monitor={images: 8, picture_images: 4, metrics: [fidelity]}",
    "evaluate.metrics=[fidelity]",
    SHORT,
]
SAMPLE = [
    "data.subset=train",
    "sample={count: 20, cfg: [1, 2], preview_images: 10}",
    "evaluate={extractor: digits, metrics: [fid], half_half_splits: 0}",
]


@pytest.fixture
def call(monkeypatch, capfd):
    """A function from a command and its words to its exit code and what it said."""

    def run(command, *words: str) -> tuple[int, str]:
        main = command if callable(command) else lambda: commands.run(SimFlowStageConfig, room.COMMANDS)
        named = [] if callable(command) else [command]
        monkeypatch.setattr(sys, "argv", ["x", *named, "--preset=digits_simflow", *words])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0), "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    return run


def test_the_flow_that_was_trained_with_the_autoencoder_is_sampled_and_measured_with_no_stage_3(call, tmp_path):
    run = f"run_dir={tmp_path}"
    code, said = call("generate", run, *SAMPLE)
    assert code == 2 and f"run `bash scripts/train_simflow.sh {run}` first" in said and said.count("error:") == 1

    for command, words in (
        (train_simflow.main, JOINT),
        (evaluate_ae.main, JOINT),
        ("generate", SAMPLE),
        ("evaluate", SAMPLE),
        ("likelihood", SAMPLE),
    ):
        code, said = call(command, run, *words)
        assert code == 0, said
    autoencoder = Autoencoder.load(tmp_path / "ae" / "autoencoder")
    assert autoencoder.config.posterior_std == 0.5
    saved = json.loads((tmp_path / "simflow" / "generator" / "config.json").read_text())
    assert saved["about"]["autoencoder"] == autoencoder.fingerprint
    _, labels = digit_images(32)
    assert sum(saved["about"]["class_counts"]) < len(labels) and len(saved["about"]["class_counts"]) == 10
    weights = load_file(tmp_path / "simflow" / "generator" / "model.safetensors")
    assert weights["normaliser.scale"].eq(1).all() and not weights["normaliser.mean"].any()
    averages = load_file(tmp_path / "ae" / "checkpoints" / "step_00000012" / "ema.safetensors")
    flow = {name.removeprefix("simflow."): value for name, value in averages.items() if name.startswith("simflow.")}
    assert flow and all(torch.equal(weights[f"model.{name}"], value) for name, value in flow.items())
    with np.load(tmp_path / "simflow" / "samples" / "cfg_2.npz", allow_pickle=False) as arrays:
        assert arrays["arr_0"].shape == (20, 32, 32, 3)
    assert json.loads((tmp_path / "simflow" / "evaluation.json").read_text())["metrics"]["1"]["fid"] > 0

    # Far from trained, the flow is near the standard normal, and latents of std 0.5 and more have at least their noise's entropy.
    bits = json.loads((tmp_path / "simflow" / "likelihood.json").read_text())["metrics"]["bits_per_dimension"]
    assert 1.0 < bits < 4
    assert "images, in the latents' own units" in said and "autoencoder and flow had these images in training" in said
    code, said = call("likelihood", run, *SAMPLE, "data.subset=val")
    assert code == 0 and "in training" not in said and "of 359 images" in said

    code, said = call("generate", run, *SAMPLE, "model.tarflow.width=64")
    assert code == 2 and "model.tarflow.width: 12 -> 64" in said and said.count("error:") == 1

    code, said = call(train_simflow.main, run, *JOINT)
    assert code == 0 and "complete" in said
    code, said = call("train", run, *SAMPLE)
    assert code == 2 and "was trained with its autoencoder" in said and str(tmp_path) in said


def test_a_flow_with_a_posterior_of_learned_variance_is_sampled_measured_and_trained_on_from_its_draws(call, tmp_path):
    run = f"run_dir={tmp_path / 'joint'}"
    for command, words in (
        (train_simflow.main, [*JOINT, "regulariser.simflow.variance=learned"]),
        ("generate", SAMPLE),
        ("likelihood", SAMPLE),
    ):
        code, said = call(command, run, *words)
        assert code == 0, said
    autoencoder = Autoencoder.load(tmp_path / "joint" / "ae" / "autoencoder")
    assert autoencoder.config.gaussian and autoencoder.config.posterior_std == 0
    kept = json.loads((tmp_path / "joint" / "simflow" / "likelihood.json").read_text())
    assert kept["protocol"]["posterior_std"] == "learned"

    start = tmp_path / "joint" / "simflow" / "generator"
    words = [f"run_dir={tmp_path / 'more'}", f"autoencoder={tmp_path / 'joint' / 'ae' / 'autoencoder'}", *SAMPLE, SHORT]
    words += [f"start={start}", f"model.tarflow={FLOW}", "optim={lr: 1e-9, weight_decay: 0}"]
    for posterior, noted in (("mean", True), ("moments", False)):
        told = {}
        for command in ("cache_latents", "estimate_scale", "train"):
            words[0] = f"run_dir={tmp_path / posterior}"
            code, told[command] = call(command, *words, f"cache.posterior={posterior}")
            assert code == 0, told
        assert [command for command in told if "posterior draws, and these are its means" in told[command]] == [
            "cache_latents"
        ] * noted
        assert "the cache's scale is not used" in told["train"]
        assert "the cache's scale is not used" not in call("train", *words, f"cache.posterior={posterior}")[1]
        code, said = call("likelihood", *words)  # by what the generator says of its cache
        assert code == 0, said
        kept = json.loads((tmp_path / posterior / "simflow" / "likelihood.json").read_text())
        assert kept["protocol"]["posterior_std"] == ("learned" if posterior == "moments" else 0.0)


def test_without_the_saved_flow_nothing_is_sampled_and_a_line_says_how_it_is_made(call, tmp_path):
    assert call(train_simflow.main, f"run_dir={tmp_path}", *JOINT)[0] == 0
    (tmp_path / "simflow" / "generator" / "config.json").unlink()
    code, said = call("generate", f"run_dir={tmp_path}", *SAMPLE)
    assert code == 2 and f"there is no trained generator at {tmp_path / 'simflow' / 'generator'}" in said
    assert f"restore it, or delete {tmp_path / 'ae'} and run `bash scripts/train_simflow.sh run_dir={tmp_path}`" in said


def test_a_flow_on_cached_latents_goes_through_the_stage_like_any_generator(call, tmp_path):
    first, second = f"run_dir={tmp_path / 'joint'}", f"run_dir={tmp_path / 'alone'}"
    assert call(train_simflow.main, first, *JOINT)[0] == 0
    words = [second, f"autoencoder={tmp_path / 'joint' / 'ae' / 'autoencoder'}", *SAMPLE, SHORT]
    words += [f"model.tarflow={FLOW}", "model.tarflow.noise_std=0.3", "optim={lr: 1e-2, warmup_steps: 1}"]
    words += ["model.tarflow.sampler.denoise=false"]
    for command in ("cache_latents", "estimate_scale", "train", "generate", "evaluate"):
        code, said = call(command, *words)
        assert code == 0, said
        keeps = "samples of a new flow keep the noise that training adds, of 0.3 times the deviation that cache.scale_per normalises by"
        assert (keeps in said) == (command == "train")
        assert ("samples keep the noise of std 0.3" in said) == (command == "generate")
    code, said = call("cache_latents", first, *SAMPLE)
    assert code == 2 and "was trained with its autoencoder" in said and not (tmp_path / "joint" / "latents").exists()
    assert "samples keep the noise" not in call("generate", first, *SAMPLE)[1]
    rows = map(json.loads, (tmp_path / "alone" / "simflow" / "log.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0]
    code, said = call(train_simflow.main, second, *JOINT)
    assert code == 2 and f"{tmp_path / 'alone' / 'simflow'} holds a flow that was trained on cached latents" in said
    assert not (tmp_path / "alone" / "ae").exists()


def test_the_flow_that_was_trained_with_the_autoencoder_is_trained_on_while_that_is_frozen(call, tmp_path):
    assert call(train_simflow.main, f"run_dir={tmp_path / 'joint'}", *JOINT)[0] == 0
    start = tmp_path / "joint" / "simflow" / "generator"
    words = [f"run_dir={tmp_path / 'more'}", f"autoencoder={tmp_path / 'joint' / 'ae' / 'autoencoder'}", *SAMPLE, SHORT]
    for command in ("cache_latents", "estimate_scale"):
        assert call(command, *words)[0] == 0
    words += [f"start={start}", "optim={lr: 1e-9, weight_decay: 0}"]
    code, said = call("train", *words, "model.tarflow={width: 16, heads: 2, depths: [1, 1]}")
    assert code == 2 and f"the generator in {start} has other sizes" in said and said.count("error:") == 1
    words += [f"model.tarflow={FLOW}"]
    code, said = call("train", *words, "cache.scale_per=token")
    assert code == 2 and "another kind of scale of its latents: write cache.scale_per=channel" in said
    code, said = call("train", *words)
    assert code == 0 and "learned latents with noise of std 0.5, and model.tarflow.noise_std is 0" in said
    assert "samples of a new flow" not in said
    before, after = (load_file(f / "model.safetensors") for f in (start, tmp_path / "more" / "simflow" / "generator"))
    assert before.keys() == after.keys() and not torch.equal(before["model.flow.blocks.0.start"], torch.zeros(1, 1, 12))
    assert all(torch.allclose(before[name], after[name], rtol=0, atol=1e-6) for name in before)
    assert after["normaliser.scale"].eq(1).all() and not after["normaliser.mean"].any()
    code, said = call("train", *words[:-3], words[-1], words[-2])  # without start=
    assert code == 2 and "holds a run with other options" in said and "start" in said


def test_likelihood_knows_which_images_training_had(tmp_path):
    def trained(stage, **data):
        (tmp_path / stage).mkdir(exist_ok=True)
        (tmp_path / stage / "config.yaml").write_text(yaml.safe_dump({"data": data}))

    def found(*words):
        return trained_on(SimFlowStageConfig.read("", ["--preset", "digits", f"run_dir={tmp_path}", *words]))

    assert found() == []
    trained("ae", source="digits", subset="train")
    trained("simflow", source="digits", subset="all")
    assert found("data.subset=val") == ["flow"] and found("data.subset=train") == ["autoencoder", "flow"]
    trained("simflow", source="digits", subset="train")
    assert found("data.subset=val") == [] and found() == ["autoencoder", "flow"]
    assert found("data.subset=val", "data.split_seed=1") == ["autoencoder", "flow"]  # another split
    assert found("data.source=mnist", "data.subset=all") == []
    (tmp_path / "images").mkdir()
    trained("ae", source="files", path=str(tmp_path / "images"))
    relative = os.path.relpath(tmp_path / "images")
    assert found("data.source=files", f"data.path={relative}") == ["autoencoder"]
    (tmp_path / "ae" / "config.yaml").write_text("data: {folder: of another project}")
    assert found() == ["flow"]


def test_the_script_draws_and_measures_the_images_that_it_trained_on(tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "$*"\n')
    python.chmod(0o755)
    words = ["run_dir=r", "data.subset=train", "data.flip=true", "optim.lr=1", "--", "sample.cfg=[1]"]
    environment = os.environ | {"PYTHON": str(python), "DATA": ""}
    made = subprocess.run(
        ["bash", "scripts/train_simflow.sh", *words], env=environment, capture_output=True, text=True, check=True
    )
    calls = [line.partition("--preset digits_simflow ")[2] for line in made.stdout.splitlines() if "--preset" in line]
    training, sampling = (
        "run_dir=r data.subset=train data.flip=true optim.lr=1",
        "run_dir=r data.subset=train sample.cfg=[1]",
    )
    assert calls == [sampling, training, training, sampling, sampling]  # the first reads the options alone
