"""Every preset of stage 1 loads, and those at the paper's scale have the paper's numbers."""

from pathlib import Path

import pytest
import torch
import yaml

from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import build_config
from flowprior.run.presets import config_from_command_line
from flowprior.run.written import read_yaml
from tokenizer.prior.train_flowhead import FlowPriorConfig

FOLDER = Path(__file__).resolve().parents[3] / "tokenizer" / "prior" / "configs"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
SOURCES = {
    "qwen": "hf_embedding",
    "dinov2": "timm",
    "vae": "autoencoder",
    "vq": "codebook",
    "textual": "word_vectors",
    "semantic": "digits_semantic",
    "lowlevel": "digits_lowlevel",
    "discrete": "codebook",
}


def load(name: str) -> FlowPriorConfig:
    return config_from_command_line(FlowPriorConfig, FOLDER, "", ["--preset", name])


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_loads_and_its_header_says_how_to_run_it_and_what_to_expect(name):
    config = load(name)
    header = "".join(line for line in (FOLDER / f"{name}.yaml").read_text().splitlines(True) if line.startswith("#"))
    assert config.run_dir == f"runs/{name}" and "bash scripts/train_flowhead.sh" in header
    assert "easured" in header and ("PRESET=" + name in header or name == "digits")
    assert config.train.micro_batch(1) % config.group_size == 0


def test_the_four_kinds_of_target_are_there_at_both_scales():
    for kind, source in SOURCES.items():
        scale = "imagenet" if kind in ("qwen", "dinov2", "vae", "vq") else "digits"
        assert load(f"{scale}_{kind}").target.source == source


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("imagenet")])
def test_presets_at_the_papers_scale_have_the_papers_numbers(name):
    config = load(name)
    assert (config.channels, config.projection, config.centre, config.pairs, config.group_size) == (
        32,
        "random",
        False,
        4,
        1,
    )
    assert (config.train.steps, config.train.global_batch, config.times.distribution) == (1_000_000, 512, "uniform")
    optim = config.optim
    assert (optim.lr, optim.betas, optim.warmup_steps, optim.clip_norm) == (2e-4, (0.9, 0.95), 2500, 1.0)
    assert (optim.schedule, optim.final_lr_fraction, optim.ema_decay) == ("cosine", 0.1, 0.9999)
    with torch.device("meta"):
        velocity = VelocityMLP(config.channels, config.width, config.depth)
    assert sum(p.numel() for p in velocity.parameters()) == 34_978_848


def test_the_semantic_preset_of_the_digits_is_the_default_one():
    default, semantic = (
        build_config(FlowPriorConfig, read_yaml(FOLDER / f"{name}.yaml")) for name in ("digits", "digits_semantic")
    )
    assert default == semantic


def test_the_digits_presets_differ_in_their_target_only():
    plain = [
        yaml.safe_load((FOLDER / f"digits_{kind}.yaml").read_text())
        for kind in ("semantic", "lowlevel", "discrete", "textual")
    ]
    for values in plain:
        values.pop("target"), values.pop("held_out")
    assert all(values == plain[0] for values in plain)
