"""What the README shows is there and runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flowprior import FlowPrior, VelocityMLP
from flowprior.flow.target_map import TargetMap
from flowprior.training.config import find_preset
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.vit import ViTConfig

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_every_script_picture_and_registry_that_it_names_is_there():
    named = set(re.findall(r"(?:bash|python) ((?:scripts|toy_examples)/\S+\.(?:sh|py))", README))
    named |= set(re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README))
    named |= set(re.findall(r"`((?:tokenizer|mar|flowprior)/[\w/]+\.py)`", README))
    assert len(named) >= 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "name", ["REGULARISERS", "LATENT_MAPS", "DISCRIMINATORS", "FEATURES", "METERS", "TARGETS", "GENERATORS", "METRICS"]
)
def test_every_registry_is_in_the_file_that_it_names(name):
    file = re.search(rf"`{name}` in `([^`]+)`", README).group(1)
    assert re.search(rf"^{name}\b.*=", (ROOT / file).read_text(), flags=re.M)


CONFIGS = {
    "train_flowhead": "tokenizer/configs/flowhead",
    "train_ae": "tokenizer/configs/ae",
    "train_mar": "mar/configs",
}


def test_the_presets_that_it_names_are_there_for_the_script_that_it_names():
    named = re.findall(r"PRESET=(\w+)[^\n`|]*bash scripts/(\w+)\.sh", README)
    assert len(named) >= 8 and len(named) == len(re.findall(r"PRESET=\w", README))
    for preset, script in named + [("digits", script) for script in CONFIGS]:
        assert find_preset(preset, ROOT / CONFIGS[script], families=script == "train_mar").is_file()
    for preset in ("digits_semantic", "digits_lowlevel", "digits_discrete"):
        assert f"`{preset}`" in README and (ROOT / CONFIGS["train_flowhead"] / f"{preset}.yaml").is_file()


def test_its_lines_with_a_prior_with_an_online_flow_and_to_make_one_run_as_they_stand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = FlowPrior(VelocityMLP(4, 8, 1), TargetMap(torch.zeros(6), torch.ones(()), torch.randn(6, 4)))
    small.save("runs/digits/flowhead/prior")
    fit = FlowPrior.fit
    monkeypatch.setattr(
        FlowPrior, "fit", lambda *args, **options: fit(*args, **{**options, "steps": 3, "progress": False})
    )
    latents = torch.randn(2, 3, 4, requires_grad=True)
    scope = {"FlowPrior": FlowPrior, "device": "cpu", "latents": latents, "loss": 0.0, "features": torch.randn(64, 48)}
    shown = [block for block in blocks("python") if "FlowPrior" in block]
    use, make, follow = shown
    for block in (use, follow, make):  # the prior of the first stands in the second, too
        exec(compile(block, "README.md", "exec"), scope)
    scope["loss"].backward()
    assert latents.grad.abs().sum() > 0 and scope["online"].updates == 1
    assert scope["samples"].shape == (1000, 32) and scope["targets"].shape == (64, 32)
    assert (tmp_path / "my_prior" / "model.safetensors").is_file()


def test_its_tokenizer_encodes_decodes_and_tells_of_itself_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vit = ViTConfig(width=12, depth=1, heads=3)
    small = Autoencoder(AutoencoderConfig(16, 8, 2, 4, encoder=vit, decoder=vit), {"prior": "abc"})
    small.save("runs/digits/ae/autoencoder")
    [block] = [block for block in blocks("python") if "Autoencoder" in block]
    scope = {"images": torch.rand(2, 3, 16, 16)}
    exec(compile(block, "README.md", "exec"), scope)
    assert scope["latents"].shape == (2, 2, 4) and scope["images"].shape == (2, 3, 16, 16)


def test_the_presets_of_autoencoders_and_generators_that_it_names_are_there():
    there = {file.stem for folder in ("tokenizer/configs/ae", "mar/configs") for file in (ROOT / folder).glob("*.yaml")}
    named = set(re.findall(r"`(digits_\w+)`", README)) | {
        f"imagenet_{n}" for n in ("qwen", "dinov2", "vae", "vq", "none", "kl", "softvq")
    }
    assert len(named) >= 12 and named <= there
