import pytest
import torch
from safetensors.torch import load_file

from flowprior.errors import UserError
from flowprior.run.files import write_tensors
from generation.generator import GeneratorObjective
from saved_generators import load, rewrite, save


@pytest.fixture
def saved(tmp_path) -> tuple[GeneratorObjective, str]:
    return save(tmp_path)


@pytest.mark.parametrize("scale_shape", [(3,), (4, 3)], ids=["scale per channel", "scale per token and channel"])
def test_a_loaded_generator_samples_what_the_saved_one_did(tmp_path, scale_shape):
    bundle, fingerprint = save(tmp_path, scale_shape)
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
