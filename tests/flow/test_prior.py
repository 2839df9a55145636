import json
import os
import pickle
import shutil
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior import FlowPrior, UserError
from flowprior.flow.path import draw_path
from networks import random_prior


def blobs(count, generator):
    centres = torch.tensor([[3.0, 1.0], [-1.0, -2.0]])
    return centres[torch.randint(2, (count,), generator=generator)] + 0.4 * torch.randn(count, 2, generator=generator)


def test_a_prior_fitted_to_two_blobs_draws_the_two_blobs(generator):
    features = blobs(2000, generator)
    prior = FlowPrior.fit(
        features,
        channels=2,
        projection="identity",
        width=64,
        depth=2,
        steps=600,
        batch_size=256,
        lr=3e-3,
        progress=False,
    )
    target, drawn = prior.project(features), prior.sample(2000, steps=20, generator=generator)
    axis = prior.project(torch.tensor([[3.0, 1.0]])) - prior.project(torch.tensor([[-1.0, -2.0]]))
    sides = [(x @ axis.T).squeeze(1) > 0 for x in (target, drawn)]
    assert sides[1].float().mean().item() == pytest.approx(0.5, abs=0.08)
    for side in (True, False):
        real, made = target[sides[0] == side], drawn[sides[1] == side]
        assert (real.mean(0) - made.mean(0)).abs().max() < 0.1
        assert (made.std(0) / real.std(0) - 1).abs().max() < 0.4
    assert not prior.training and not any(p.requires_grad for p in prior.parameters())
    near = prior.alignment_loss(target, generator=torch.Generator().manual_seed(0))
    far = prior.alignment_loss(target.mean(0) + torch.zeros_like(target), generator=torch.Generator().manual_seed(0))
    assert near < far


def test_fitting_twice_with_one_seed_gives_one_prior_and_another_seed_another(generator):
    features = blobs(64, generator)
    priors = [
        FlowPrior.fit(features, 2, width=8, depth=1, steps=3, batch_size=16, seed=seed, progress=False)
        for seed in (0, 0, 1)
    ]
    assert priors[0].fingerprint == priors[1].fingerprint != priors[2].fingerprint


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_fit_where_gradients_are_off_is_the_same(mode, generator):
    features, options = blobs(64, generator), {"width": 8, "depth": 1, "steps": 3, "batch_size": 16, "progress": False}
    with mode():
        prior = FlowPrior.fit(features.clone(), 2, **options)
    assert prior.fingerprint == FlowPrior.fit(features, 2, **options).fingerprint


def test_a_prior_stays_frozen_and_in_evaluation_mode_inside_a_model_that_trains():
    model = torch.nn.ModuleDict({"prior": random_prior(), "decoder": torch.nn.Dropout()})
    model.train()
    assert model["decoder"].training and not any(module.training for module in model["prior"].modules())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_saved_prior_comes_back_with_equal_weights_and_outputs(tmp_path, generator):
    prior = random_prior()
    prior.save(tmp_path)
    again = FlowPrior.load(tmp_path)
    latents, features = torch.randn(2, 4, 3, generator=generator), torch.randn(4, 5, generator=generator)
    draw = draw_path(latents, pairs=4, generator=generator)
    assert again.fingerprint == prior.fingerprint and again.target == prior.target and again.channels == 3
    assert torch.equal(again.project(features), prior.project(features))
    assert torch.equal(again.alignment_loss(latents, draw), prior.alignment_loss(latents, draw))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_fingerprint_changes_with_any_weight():
    prior, before = random_prior(), random_prior().fingerprint
    assert prior.fingerprint == before
    for tensor in prior.state_dict().values():
        kept = tensor.clone()
        tensor.view(-1)[-1] += 1
        assert prior.fingerprint != before
        tensor.copy_(kept)
    assert prior.fingerprint == before


def test_latents_of_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match="3 channels, the latents have 4"):
        random_prior().alignment_loss(torch.zeros(2, 4))


def assert_refused(folder):
    with pytest.raises(UserError) as refusal:
        FlowPrior.load(folder)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_missing_empty_or_truncated_file_is_named(name, tmp_path):
    random_prior().save(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for content in (b"", whole[:10], whole[: len(whole) // 2], whole[:-3]):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path)
    (tmp_path / name).unlink()
    assert_refused(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"velocity": {"channels": 3, "width": 32, "depth": 2}},
        {"velocity": {"channels": 3, "color": 1}},
        {"velocity": None},
        {"velocity": {"channels": -1}},
        {"feature_channels": "five"},
        {"feature_channels": 6},
        {"channels": 4},
        {"target": 7},
        {"velocity": []},
    ],
)
def test_a_config_of_another_prior_is_refused(change, tmp_path):
    random_prior().save(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert_refused(tmp_path)


def test_the_weights_of_another_prior_of_the_same_sizes_are_refused(tmp_path):
    for seed in (0, 1):
        random_prior(seed=seed).save(tmp_path / str(seed))
    shutil.copy(tmp_path / "1" / "model.safetensors", tmp_path / "0")
    assert_refused(tmp_path / "0")


@settings(max_examples=150)
@given(st.data())
def test_a_changed_byte_of_the_weights_is_refused_or_changes_nothing(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("prior")
    prior = random_prior(width=4, depth=1)
    prior.save(folder)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        assert FlowPrior.load(folder).fingerprint == prior.fingerprint
    except UserError:
        pass
    shutil.rmtree(folder)


class Trap:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_loading_executes_no_code(tmp_path):
    random_prior().save(tmp_path)
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    for name in ("config.json", "model.safetensors", "model.pt", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(trap)
    assert_refused(tmp_path)
    torch.save(Trap(tmp_path / "sprung"), tmp_path / "model.safetensors")
    random_prior().save(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "config.json", tmp_path)
    assert_refused(tmp_path)
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap does work


def test_a_folder_is_read_like_load_reads_it(tmp_path):
    prior = random_prior()
    prior.save(tmp_path)
    assert FlowPrior.from_pretrained(tmp_path).fingerprint == prior.fingerprint
    assert FlowPrior.from_pretrained(str(tmp_path)).fingerprint == prior.fingerprint


@pytest.mark.parametrize("name", ["nobody/no-such-prior", "no/such/folder", "not a name", ""])
@pytest.mark.parametrize("options", [{"local_files_only": True}, {"endpoint": "http://127.0.0.1:9"}])
def test_a_name_that_the_hub_cannot_deliver_is_a_user_error_in_one_line(name, options, tmp_path, monkeypatch):
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    with pytest.raises(UserError) as refusal:
        FlowPrior.from_pretrained(name, cache_dir=tmp_path, **options)
    assert f"no flow prior at {name}" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_prior_that_was_cast_is_refused_since_its_target_was_rounded(tmp_path):
    prior = random_prior().bfloat16()
    asks = [partial(ask, torch.zeros(2, 3)) for ask in (prior.alignment_loss, prior.log_prob, prior.elbo_terms)]
    asks += [partial(prior.project, torch.zeros(2, 5)), partial(prior.sample, 2), partial(prior.save, tmp_path / "p")]
    for ask in asks:
        with pytest.raises(ValueError, match="cast to torch.bfloat16: keep it in float32"):
            ask()
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("width", [1, 4])
def test_features_of_another_width_than_the_targets_are_refused(width):
    with pytest.raises(ValueError, match=f"has 5 channels, the features have {width}"):
        random_prior().project(torch.zeros(2, width))
