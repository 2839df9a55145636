import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from flowprior.run.files import write_tensors
from flowprior.run.norms import norm_eps
from flowprior.run.run_folder import RunFolder
from mar.config import MARStageConfig, build_generator
from mar.generator import GeneratorObjective
from mar.saved import load_generator, save_generator
from mar.train_mar import keep_norms
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig

SHAPE = {"tokens": 4, "channels": 3, "num_classes": 5}
SIZES = {
    "width": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "heads": 2,
    "buffer_tokens": 2,
    "head_width": 12,
    "head_depth": 1,
}


def autoencoder(seed: int) -> Autoencoder:
    torch.manual_seed(seed)
    vit = ViTConfig(width=12, depth=1, heads=3)
    return Autoencoder(AutoencoderConfig(16, 8, 4, 3, False, vit, vit))


def stage(run_dir, **sampler) -> MARStageConfig:
    sampler = {"ar_steps": 2, "head_steps": 3} | sampler
    return build_config(MARStageConfig, {"run_dir": str(run_dir), "model": {"mar": {**SIZES, "sampler": sampler}}})


@pytest.fixture
def saved(tmp_path) -> tuple[GeneratorObjective, str]:
    config = stage(tmp_path)
    torch.manual_seed(0)
    bundle = GeneratorObjective(build_generator(config.model, **SHAPE), LatentNormaliser(3)).eval()
    with torch.no_grad():
        for tensor in bundle.state_dict().values():
            tensor.add_(torch.rand(tensor.shape))
    about = {"autoencoder": autoencoder(0).fingerprint}
    return bundle, save_generator(tmp_path / "mar" / "generator", bundle, config.model, SHAPE, about)


def load(run_dir, seed: int = 0, **sampler):
    return load_generator(stage(run_dir, **sampler), autoencoder(seed), torch.device("cpu"))


def test_a_loaded_generator_samples_what_the_saved_one_did(tmp_path, saved):
    bundle, fingerprint = saved
    loaded, about = load(tmp_path)
    labels, seeds = torch.tensor([0, 4]), [1, 2]
    with torch.no_grad():
        expected = bundle.normaliser.undo(bundle.model.sample(labels, seeds, 2.0))
    assert torch.equal(loaded.normaliser.undo(loaded.model.sample(labels, seeds, 2.0)), expected)
    assert (
        about["fingerprint"] == fingerprint
        and not loaded.training
        and not any(p.requires_grad for p in loaded.parameters())
    )


def test_the_sampler_is_the_one_that_is_asked_for_now(tmp_path, saved):
    loaded, _ = load(tmp_path, head_steps=7, solver="heun")
    assert (loaded.model.config.sampler.head_steps, loaded.model.config.sampler.solver) == (7, "heun")


def test_a_generator_of_another_autoencoder_is_refused(tmp_path, saved):
    with pytest.raises(UserError, match="another autoencoder"):
        load(tmp_path, seed=1)


def rewrite(folder, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_generator_states_the_eps_of_its_norms_and_has_them_again(tmp_path, saved):
    folder = tmp_path / "mar" / "generator"
    written = json.loads((folder / "config.json").read_text())["generator"]["mar"]
    assert (written["norm_eps"], written["qk_norm_eps"]) == (1e-6, 1e-5)
    rewrite(folder, lambda c: c["generator"]["mar"].update(norm_eps=1e-3, qk_norm_eps=1e-2))
    found = norm_eps(load(tmp_path)[0].model)
    assert {eps for name, eps in found.items() if "q_norm" in name or "k_norm" in name} == {1e-2}
    assert {eps for name, eps in found.items() if name.startswith(("encoder.", "decoder.")) and ".norm" in name} == {
        1e-3
    }


def test_a_generator_of_before_has_timms_one_eps_for_all_norms_and_that_is_said(tmp_path, saved, capsys):
    def forget(config):
        for name in ("norm_eps", "qk_norm_eps"):
            del config["generator"]["mar"][name]

    rewrite(tmp_path / "mar" / "generator", forget)
    model = load(tmp_path)[0].model
    said = capsys.readouterr().err
    assert "states no eps of its norms: 1e-06 is taken" in said and said.count("\n") == 1
    assert set(norm_eps(model).values()) == {1e-6}


def test_a_run_that_began_before_goes_on_with_the_eps_that_it_has(tmp_path, capsys):
    config, folder = stage(tmp_path), RunFolder(tmp_path, "mar")
    folder.open(config, World())
    (folder.path / "checkpoints" / "step_00000001").mkdir(parents=True)
    written = yaml.safe_load(folder.config_file.read_text())
    for name in ("norm_eps", "qk_norm_eps"):
        del written["model"]["mar"][name]
    folder.config_file.write_text(yaml.safe_dump(written))
    with pytest.raises(UserError, match="qk_norm_eps: 1e-06 -> 1e-05"):
        folder.check(stage(tmp_path), {})
    keep_norms(config, folder)
    assert config.model.mar.qk_norm_eps == 1e-6 and "states no eps of its norms" in capsys.readouterr().err
    assert folder.check(config, {}) == []
    begun_now = stage(tmp_path / "now")
    keep_norms(begun_now, RunFolder(tmp_path / "now", "mar"))
    assert begun_now.model.mar.qk_norm_eps == 1e-5


DAMAGE = {
    "none": lambda folder: (folder / "config.json").unlink(),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "truncated weights": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-1]
    ),
    "other weights": lambda folder: write_tensors(
        folder / "model.safetensors",
        {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()},
    ),
    "other format": lambda folder: rewrite(folder, lambda c: c.update(format=9)),
    "other sizes": lambda folder: rewrite(folder, lambda c: c["generator"]["mar"].update(width=18)),
    "other generator": lambda folder: rewrite(folder, lambda c: c["generator"].update(name="bogus")),
    "no shape": lambda folder: rewrite(folder, lambda c: c.pop("shape")),
    "other shape": lambda folder: rewrite(folder, lambda c: c["shape"].update(tokens=9)),
    "strange shape": lambda folder: rewrite(folder, lambda c: c.update(shape={"tokens": "many"})),
    "negative shape": lambda folder: rewrite(folder, lambda c: c["shape"].update(tokens=-1)),
    "no about": lambda folder: rewrite(folder, lambda c: c.pop("about")),
    "strange about": lambda folder: rewrite(folder, lambda c: c.update(about=[1])),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_generator_is_refused_and_named(tmp_path, saved, damage):
    folder = tmp_path / "mar" / "generator"
    damage(folder)
    with pytest.raises(UserError, match=str(folder)):
        load(tmp_path)
