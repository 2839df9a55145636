import json

import pytest
import torch

from flowprior.errors import UserError
from mar.flow_map import FlowMap
from mar.model import MAR
from mar.sampler import sample_latents
from slow_mar import LABELS, SEEDS, settings, slowly, small_mar


def small_map(model: MAR, guidance=(0.0, 4.0)) -> FlowMap:
    """With weights far from their first ones."""
    flow_map = FlowMap(model.head, guidance).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in flow_map.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return flow_map


@pytest.fixture(scope="module")
def model() -> MAR:
    model = small_mar()
    model.flow_map = small_map(model)
    return model


@pytest.mark.parametrize("evaluations", [1, 2, 4])
def test_a_new_map_makes_euler_steps_of_its_head(evaluations):
    model = small_mar()
    model.flow_map = FlowMap(model.head, (1.0, 4.0)).requires_grad_(False)
    found = sample_latents(model, LABELS, SEEDS, 1.0, settings(head="map", head_evaluations=evaluations))
    steps = sample_latents(model, LABELS, SEEDS, 1.0, settings(head_evaluations=evaluations))
    torch.testing.assert_close(found, steps, rtol=1e-5, atol=1e-6)


def test_a_new_map_is_guided_by_the_extrapolated_condition(generator):
    model = small_mar()
    flow_map = FlowMap(model.head, (1.0, 4.0)).requires_grad_(False)
    x, cond, uncond = torch.randn(7, 3, generator=generator), *torch.randn(2, 7, 16, generator=generator)
    s, t = torch.rand(2, 7, generator=generator)
    embedded = flow_map.embed_guided(cond, uncond, scale=2.5)
    expected = model.head(x, s, cond + 1.5 * (cond - uncond))
    torch.testing.assert_close(flow_map.mean_velocity(x, s, t, embedded), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cfg", [None, 0.5, 2.5])
@pytest.mark.parametrize(
    "options",
    [
        {"head_evaluations": 1},
        {"head_evaluations": 3, "cfg_schedule": "constant"},
        {"head_evaluations": 4, "head_evaluations_last": 1, "ar_steps": 5, "temperature": 0.8},
    ],
)
def test_samples_by_a_map_are_those_of_the_slow_sampler(model, options, cfg):
    config = settings(head="map", **options)
    expected = torch.stack([slowly(model, label, seed, cfg, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, cfg or 1.0, config), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_sample_by_a_map_is_the_same_at_any_batch_size(model, batch):
    config = settings(head="map", head_evaluations=2)
    whole = sample_latents(model, LABELS, SEEDS, 3.0, config)
    parts = [
        sample_latents(model, LABELS[i : i + batch], SEEDS[i : i + batch], 3.0, config) for i in range(0, 6, batch)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saving", ["skip_unread", "share_first", "one_batch", "share_times", "cuda_graphs"])
def test_exact_savings_are_exact_with_a_map(model, saving):
    labels = torch.tensor([3, 1, 3, 3, 0, 1])
    found = [
        sample_latents(model, labels, SEEDS, 3.0, settings(head="map", head_evaluations=2, **{saving: on}))
        for on in (True, False)
    ]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_guided_sample_by_a_map_takes_one_call_of_its_network_an_evaluation(model):
    calls = []
    hook = model.flow_map.velocity.input.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape))
    sample_latents(model, LABELS, SEEDS, 3.0, settings(ar_steps=5, head="map", head_evaluations=2))
    hook.remove()
    assert calls == [(len(LABELS), 1, 3)] * 10


def test_a_map_carries_a_token_nowhere_in_no_time_and_without_guidance_looks_at_one_condition(model, generator):
    flow_map = model.flow_map
    x, cond, uncond = torch.randn(7, 3, generator=generator), *torch.randn(2, 7, 16, generator=generator)
    s, embedded = torch.rand(7, generator=generator), flow_map.embed_guided(cond, uncond, scale=3.0)
    assert torch.equal(flow_map(x, s, s, embedded), x)
    torch.testing.assert_close(flow_map.embed_guided(cond, uncond, scale=1.0), flow_map.embed_guided(cond))
    scales = torch.tensor([[0.5], [1.0], [2.0], [3.0], [1.5], [2.5], [4.0]])
    each = [flow_map.embed_guided(c, u, scale=w.item()) for c, u, w in zip(cond, uncond, scales)]
    torch.testing.assert_close(flow_map.embed_guided(cond, uncond, scale=scales), torch.stack(each))


def test_without_a_map_which_comes_after_training_a_sampler_that_asks_for_one_takes_the_flows_own_steps():
    model = small_mar()
    model.config.sampler = settings(head="map", head_evaluations=3, head_evaluations_last=1)
    expected = sample_latents(model, LABELS, SEEDS, 2.0, settings())
    assert torch.equal(model.sample(LABELS, SEEDS, 2.0), expected)


@pytest.mark.parametrize("cfg", [-0.1, 4.5])
def test_guidance_that_a_map_does_not_serve_is_refused_with_what_to_write(model, cfg, monkeypatch):
    monkeypatch.setattr(model.config, "sampler", settings(head="map", head_evaluations=1))
    with pytest.raises(UserError, match=r"from 0 to 4.*distil\.guidance=\["):
        model.sample(LABELS, SEEDS, cfg)
    assert model.sample(LABELS, SEEDS, 4.0).shape == (6, 5, 3)


@pytest.fixture
def saved(model, tmp_path):
    model.flow_map.save(tmp_path / "map", "abc", {"seed": 0})
    return tmp_path / "map"


def test_a_saved_map_is_read_as_it_was(model, saved):
    loaded = FlowMap.load(saved)
    assert loaded.fingerprint == model.flow_map.fingerprint and loaded.guidance == (0.0, 4.0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert json.loads((saved / "config.json").read_text())["generator"] == "abc"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 7},
        {"head": 3},
        {"head": {"channels": 1 << 30, "width": 1 << 30, "depth": 1, "cond_channels": 16}},
        {"guidance": [1]},
        {"fingerprint": "0"},
    ],
)
def test_a_damaged_map_is_refused_in_a_line_that_names_it(saved, change):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=str(saved)):
        FlowMap.load(saved)


def test_a_map_whose_weights_are_gone_is_refused(saved):
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=str(saved)):
        FlowMap.load(saved)
