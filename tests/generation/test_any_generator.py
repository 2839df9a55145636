"""A room is a model and a config: the commands, the files and the messages of stage 3 come with them."""

import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import to_dict
from gaussians import Gaussians, GaussiansStageConfig
from generation import commands
from generation.config import GenerationConfig, SampleConfig
from generation.sample_drawer import SampleDrawer
from mar.config import MARStageConfig
from mar.model import MARConfig
from simflow.model import TarFlowConfig
from sit.model import SiTConfig
from small_diffusers import save_small_diffusers
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig

PRESET = """
data: {source: digits, size: 32, subset: val}
train: {steps: 30, global_batch: 64, eval_steps: 15, log_steps: 5, checkpoint_steps: 10, tensorboard: false}
optim: {lr: 0.1, warmup_steps: 1}
sample: {count: 40, cfg: [1], preview_images: 10}
evaluate: {extractor: digits, metrics: [fid, recognised]}
"""


@pytest.fixture
def room(tmp_path, monkeypatch, capfd):
    """A function from a command's words to its exit code and what it said; in ``run`` lies a small autoencoder."""
    torch.manual_seed(0)
    vit = ViTConfig(width=12, depth=1, heads=3)
    Autoencoder(AutoencoderConfig(32, 16, 4, 3, False, vit, vit)).save(tmp_path / "run" / "ae" / "autoencoder")
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "digits.yaml").write_text(PRESET)
    monkeypatch.setattr(GaussiansStageConfig, "PRESETS", tmp_path / "presets")

    def call(*words: str, stage: type[GenerationConfig] = GaussiansStageConfig, own=None) -> tuple[int, str]:
        named = [f"run_dir={tmp_path / 'run'}"] if words and words[0] in commands.COMMANDS else []
        monkeypatch.setattr(sys, "argv", ["__main__.py", *words[:1], *named, *words[1:]])
        try:
            commands.run(stage, own)
        except SystemExit as stop:
            return int(stop.code or 0), "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    return call


def test_every_command_takes_an_autoencoder_of_diffusers(room, tmp_path):
    save_small_diffusers(tmp_path / "vae")
    for name in commands.COMMANDS:
        code, said = room(name, f"autoencoder={tmp_path / 'vae'}", "cache.posterior=moments", "evaluate.metrics=[fid]")
        assert code == 0, said
    saved = json.loads((tmp_path / "run" / "gaussians" / "generator" / "config.json").read_text())
    assert saved["shape"] == {"tokens": 64, "channels": 3, "num_classes": 10}


def test_every_command_runs_for_a_generator_that_stage_3_has_never_heard_of(room, tmp_path):
    for name in commands.COMMANDS:
        code, said = room(name)
        assert code == 0, said
    folder = tmp_path / "run" / "gaussians"
    saved = json.loads((folder / "generator" / "config.json").read_text())
    assert saved["generator"] == {"name": "plain", "plain": {"spread": 0.1, "sampler": {"temperature": 1.0}}}
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["protocol"]["samples"]["1"]["sampler"] == {"temperature": 1.0}
    assert evaluation["metrics"]["1"]["fid"] > 0
    means = load_file(folder / "generator" / "model.safetensors")["model.means"]
    losses = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines() if "loss" in line]
    assert means.shape == (10, 4, 3) and losses[-1] < losses[0]
    for name in ("cache_latents", "train", "generate", "evaluate"):
        assert "complete" in room(name)[1], name
    said = room("generate", "model.plain.sampler.temperature=0.5")[1]
    assert "40 images" in said


def test_generators_of_a_run_share_its_latents(room):
    assert room("cache_latents")[0] == 0
    small = "data.subset=val"
    assert "latents: complete" in room("cache_latents", small, "cache.scale_per=all", stage=MARStageConfig)[1]


@pytest.mark.parametrize(
    "done, name, needed",
    [
        ([], "train", "python -m gaussians cache_latents"),
        ([], "estimate_scale", "python -m gaussians cache_latents"),
        (["cache_latents"], "train", "python -m gaussians estimate_scale"),
        (["cache_latents"], "generate", "bash scripts/train_gaussians.sh"),
        (["cache_latents"], "evaluate", "python -m gaussians generate"),
    ],
)
def test_a_command_before_the_one_that_it_needs_names_that_ones_of_its_own_room(room, done, name, needed):
    for before in done:
        assert room(before)[0] == 0
    code, said = room(name)
    assert code == 2 and f"run `{needed}" in said.splitlines()[-1]


@pytest.mark.parametrize("words", [[], ["trian"], ["run_dir=x"]])
def test_a_word_that_is_no_command_is_answered_with_those_there_are(room, words):
    code, said = room(*words)
    assert code == 2 and len(said.splitlines()) == 1
    assert all(name in said for name in commands.COMMANDS)


def test_help_lists_the_commands_and_each_says_what_it_does_in_the_rooms_own_words(room):
    code, said = room("--help")
    assert code == 0 and all(f"  {name} " in said and meaning in said for name, meaning in commands.COMMANDS.items())
    for name in commands.COMMANDS:
        code, said = room(name, "--help")
        assert code == 0 and f"python -m gaussians {name} [" in said and "model.plain.spread" in said
        assert "<generator>" not in said


def test_a_rooms_own_command_takes_the_place_of_the_shared_one(room):
    def train(stage, seen):
        """Train it and the autoencoder together.

        And more.
        """
        seen.append((stage, sys.argv[1:]))

    seen = []
    own = partial(train, seen=seen)
    own.__doc__ = train.__doc__
    assert room("train", "a=1", own={"train": own})[0] == 0
    [(stage, words)] = seen
    assert stage is GaussiansStageConfig and words[-1] == "a=1"
    said = room("--help", own={"train": own, "distil": own})[1]
    assert said.count("Train it and the autoencoder together.") == 2 and "And more" not in said


def test_what_mar_writes_has_its_sections_in_the_order_in_which_it_always_had_them():
    sections = ["run_dir", "autoencoder", "start", "data", "cache", "model", "train", "optim", "sample", "evaluate"]
    values = to_dict(MARStageConfig())
    assert list(values) == [*sections, "distil", "distil_guidance"] and list(values["model"]) == ["name", "mar"]
    assert str(MARStageConfig().folder) == "runs/digits/mar"


def test_a_generator_that_cannot_be_guided_is_refused_before_it_trains_for_a_guided_picture(room, monkeypatch):
    monkeypatch.setattr(Gaussians, "drops_labels", False)
    for command in ("cache_latents", "estimate_scale"):
        assert room(command)[0] == 0
    for more in ([], ["train.eval_steps=0"]):  # whose picture is drawn at the end
        code, said = room("train", "sample.preview_cfg=2", *more)
        assert code == 2 and "sample.preview_cfg=1" in said and said.count("error:") == 1
    code, said = room("train", "sample={count: 40, cfg: [1, 2], preview_images: 10, preview_cfg: 1}")
    assert code == 0 and "note: label_drop=0 trains a generator that cannot be guided" in said


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_samples_have_the_precision_that_is_asked_for_whatever_trainings_autocast(precision):
    seen = []

    class Model:
        num_classes = 2

        def check_guidance(self, cfg):
            assert cfg == 1

        def sample(self, labels, seeds, cfg):
            seen.append(torch.is_autocast_enabled("cpu"))
            return torch.zeros(len(seeds), 1, 1)

    class Decoder:
        def decode(self, latents):
            seen.append(torch.is_autocast_enabled("cpu"))
            return torch.zeros(len(latents), 3, 4, 4)

    bundle = SimpleNamespace(model=Model(), normaliser=SimpleNamespace(undo=lambda latents: latents))
    drawer = SampleDrawer(bundle, Decoder(), SampleConfig(precision=precision), World())
    for outside in (True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=outside):
            drawer.draw(range(2), torch.arange(2), 1.0)
    assert seen == [precision == "bfloat16"] * 4


@pytest.mark.parametrize(
    "config", [MARConfig(label_drop=0), SiTConfig(size="digits", label_drop=0), TarFlowConfig(label_drop=0)]
)
def test_a_generator_that_never_saw_a_dropped_label_is_not_guided(config):
    with torch.device("meta"):
        model = config.build(tokens=4, channels=2, num_classes=3)
    model.check_guidance(1.0)
    with pytest.raises(
        UserError, match=r"label_drop=0, and guidance at 1.5 needs dropped labels: write sample.cfg=\[1\]"
    ):
        model.check_guidance(1.5)
    with torch.device("meta"):
        replace(config, label_drop=0.1).build(tokens=4, channels=2, num_classes=3).check_guidance(1.5)
