"""``cache_latents`` and ``estimate_scale`` as commands."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from flowprior.data.latent_writer import CacheConfig
from flowprior.errors import UserError
from generation.cache_latents import make_encode
from mar import cache_latents, estimate_scale
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command with words in a folder with a small autoencoder; its exit code and what it said."""
    torch.manual_seed(0)
    vit = ViTConfig(width=12, depth=1, heads=3)

    def call(module, *words: object, gaussian: bool = False) -> tuple[int, str]:
        if not (tmp_path / "ae").exists():
            Autoencoder(AutoencoderConfig(32, 16, 4, 3, gaussian, vit, vit)).save(tmp_path / "ae" / "autoencoder")
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        try:
            module.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, "".join(capsys.readouterr())

    return call


def test_the_scale_of_a_cache_is_printed_and_kept_in_its_manifest(command, tmp_path):
    run = f"run_dir={tmp_path}"
    assert command(cache_latents, run, "data.subset=val", "cache.dtype=float32")[0] == 0
    code, said = command(estimate_scale, tmp_path / "latents", "--num_samples", 50)
    kept = json.loads((tmp_path / "latents" / "manifest.json").read_text())["statistics"]
    assert code == 0 and kept["images"] == 50 and len(kept["channel_std"]) == 3
    for name in ("scale", "min", "max", "mean", "std"):
        assert f"{kept[name]:.3f}"[:-1] in said, name
    assert command(estimate_scale, run, "data.subset=val", "--num_samples", 10_000)[0] == 0
    kept = json.loads((tmp_path / "latents" / "manifest.json").read_text())["statistics"]
    latents = load_file(tmp_path / "latents" / "latents-00000.safetensors")["latents"]
    assert kept["images"] == 359 and kept["std"] == pytest.approx(latents.double().std().item(), rel=1e-6)


@pytest.mark.parametrize("words", [["--num_samples", "0"], ["--num_samples", "many"], ["nowhere"]])
def test_mistakes_of_the_scale_are_said_in_one_line(command, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, said = command(estimate_scale, *words)
    assert code == 2 and words[-1] in said and len(said.splitlines()) == 1


def test_moments_of_a_gaussian_autoencoder_and_ten_crops_are_cached(command, tmp_path):
    words = [f"run_dir={tmp_path}", "data.subset=val", "cache.ten_crop=true", "cache.posterior=moments"]
    assert command(cache_latents, *words, gaussian=True)[0] == 0
    manifest = json.loads((tmp_path / "latents" / "manifest.json").read_text())
    assert (manifest["views"], manifest["channels"], manifest["moments"], manifest["count"]) == (10, 3, True, 359)
    assert load_file(tmp_path / "latents" / "latents-00000.safetensors")["latents"].shape == (359, 10, 4, 6)
    assert "complete" in command(cache_latents, *words)[1]
    code, said = command(cache_latents, *words, "cache.posterior=mean")
    assert code == 2 and "another input (posterior)" in said


def test_moments_of_an_autoencoder_without_a_posterior_are_refused(command, tmp_path):
    code, said = command(cache_latents, f"run_dir={tmp_path}", "data.subset=val", "cache.posterior=moments")
    assert code == 2 and "cache.posterior=mean" in said and not (tmp_path / "latents").exists()


def test_moments_of_an_autoencoder_whose_latents_are_mapped_are_refused():
    vit = ViTConfig(width=12, depth=1, heads=3)
    sizes = AutoencoderConfig(32, 16, 4, 4, True, vit, vit)
    sizes.latent_map.name = "soft_codebook"
    with pytest.raises(UserError, match="soft_codebook.*cache.posterior=mean"):
        make_encode(Autoencoder(sizes), CacheConfig(posterior="moments"), torch.device("cpu"))


def test_a_reference_that_is_not_there_yet_is_said_when_images_are_encoded(command, tmp_path):
    words = [f"run_dir={tmp_path}", "data.subset=val", f"evaluate.reference={tmp_path}/stats.npz"]
    code, said = command(cache_latents, *words, "evaluate.metrics=[fid]")
    assert (
        code == 0
        and f"{tmp_path}/stats.npz is not there yet" in said
        and (tmp_path / "latents" / "manifest.json").is_file()
    )


def test_crops_and_flips_of_training_images_are_refused_where_latents_are_trained_on(command, tmp_path):
    code, said = command(cache_latents, f"run_dir={tmp_path}", "data.flip=true")
    assert code == 2 and "cache.flips=true" in said
