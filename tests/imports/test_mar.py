"""The paper's MAR, in the format that it comes in."""

import argparse
import json

import pytest
import torch

import saved_generators
from flowprior.distributed import World
from flowprior.errors import UserError
from generation.generate import load_drawer
from imports.__main__ import import_weights, parse
from imports.checkpoint import read_checkpoint
from published_mar import CHANNELS, TOKENS, PublishedMAR

SCALE = 1.7052


@pytest.fixture(scope="module")
def theirs() -> PublishedMAR:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PublishedMAR().eval()


@pytest.fixture
def imported(theirs, tmp_path):
    """A function from changes to the checkpoint and words to the folder of a run with it and with its autoencoder."""
    run = tmp_path / "run"
    saved_generators.autoencoder(0).eval().save(run / "ae" / "autoencoder")

    def make(*words, change=lambda state: state, **beside):
        average = {name: value.detach().clone() for name, value in theirs.state_dict().items()}
        last = {f"module.{name}": torch.zeros_like(value) for name, value in average.items()}
        content = {"model": last, "model_ema": change(average), "optimizer": {"state": {}}, "epoch": 399, "scaler": {}}
        torch.save(content | beside, tmp_path / "checkpoint-last.pth")
        words = words or (f"scale={SCALE}", f"autoencoder={run / 'ae' / 'autoencoder'}")
        name, out, config = parse([str(tmp_path / "checkpoint-last.pth"), "--out", f"{run}/mar/generator", *words])
        import_weights(read_checkpoint(name, config.set), config, out)
        return run

    return make


@torch.no_grad()
def test_an_imported_mar_has_the_published_conditions_and_velocities(theirs, imported):
    bundle, _ = saved_generators.load(imported())
    draw = torch.Generator().manual_seed(1)
    latents = torch.randn(2, TOKENS, CHANNELS, generator=draw)
    known, wanted = torch.tensor([[2, 0], [1, 3]]), torch.tensor([[1, 3], [0, 2]])
    labels = torch.tensor([3, bundle.model.num_classes])  # the last stands for no label
    conditions = bundle.model.condition(latents, labels, known, wanted)
    for image, label in enumerate((3, None)):
        expected = theirs.condition(latents[image], label, wanted[image].tolist())[wanted[image]]
        torch.testing.assert_close(conditions[image], expected, rtol=1e-4, atol=1e-5)
        t = torch.rand(2, generator=draw)
        ours = bundle.model.head(latents[image][:2], t, expected)
        torch.testing.assert_close(
            ours, -theirs.diffloss.net(latents[image][:2], 1 - t, expected), rtol=1e-4, atol=2e-5
        )
    torch.testing.assert_close(bundle.normaliser(latents), SCALE * latents)


def test_the_commands_of_stage_3_take_it_as_the_runs_own(imported):
    config = saved_generators.stage(imported())
    config.data.size = 16
    drawer, saved = load_drawer(config, World())
    assert drawer.draw(range(3), torch.tensor([0, 4]), 2.0).shape == (3, 3, 16, 16)
    assert saved["about"]["imported"]["set"] == "model_ema" and saved["generator"]["mar"]["qk_norm_eps"] == 1e-5


def test_the_scale_beside_the_weights_is_taken(imported, tmp_path):
    autoencoder = f"autoencoder={tmp_path / 'run' / 'ae' / 'autoencoder'}"
    run = imported(autoencoder, args=argparse.Namespace(vae_scaling_factor=0.25))
    assert saved_generators.load(run)[0].normaliser.scale.tolist() == [0.25] * CHANNELS
    assert json.loads((run / "mar" / "generator" / "config.json").read_text())["shape"]["num_classes"] == 5


def test_a_scale_beside_the_weights_that_is_no_number_above_0_is_refused(imported, tmp_path):
    autoencoder = f"autoencoder={tmp_path / 'run' / 'ae' / 'autoencoder'}"
    for value in (0.0, -0.25, float("nan")):
        with pytest.raises(UserError, match="vae_scaling_factor in .* is a finite number above 0"):
            imported(autoencoder, args=argparse.Namespace(vae_scaling_factor=value))


def without(part):
    return lambda state: {name: value for name, value in state.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("q_norm"), "no norms .*diffusion head"),
        (without("fake_latent"), "it lacks fake_latent"),
        (without("decoder_blocks.1.mlp.fc2.bias"), "it lacks decoder_blocks.1.mlp.fc2.bias"),
        (lambda s: s | {"x_proj.weight": torch.zeros(2)}, "has x_proj.weight beside"),
        (lambda s: s | {"diffloss.net.final_layer.linear.bias": torch.zeros(2 * CHANNELS)}, r"linear.bias is \(6,\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(imported, change, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        imported(change=change)
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "mar").exists()


def test_a_mar_without_its_scale_or_its_autoencoder_is_refused(imported, tmp_path):
    folder = tmp_path / "run" / "ae" / "autoencoder"
    (tmp_path / "sd").mkdir()
    (tmp_path / "sd" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    for words, told in (
        (("scale=1", f"autoencoder={tmp_path}/sd"), "an imported MAR belongs to one that was imported"),
        (("scale=1", f"autoencoder={folder}", "temperature=0.1"), "leave out temperature=: the MAR in"),
        ((f"autoencoder={folder}",), "write scale="),
        (("scale=1",), "write autoencoder="),
        (("scale=1", f"autoencoder={tmp_path}/none"), "no autoencoder at"),
    ):
        with pytest.raises(UserError, match=told):
            imported(*words)
