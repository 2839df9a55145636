import copy
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.errors import UserError
from flowprior.training.randomness import StepRandom
from mar.distillation import DistilConfig, GuidanceDistillation, draw_jumps
from mar.flow_map import FlowMap
from mar.guided import GuidedTransformer
from mar.model import MAR
from mar.sampler import SamplerConfig, guidance, known_after_steps, sample_latents
from slow_mar import CHANNELS, CLASSES, LABELS, SEEDS, TOKENS, settings, small_mar

STEPS = 6
ONE_PASS = {"head": "map", "one_pass": True, "head_evaluations": 2}


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    """With weights far from their first ones."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> MAR:
    model = small_mar(encoder_depth=2, decoder_depth=2)
    model.flow_map = scrambled(FlowMap(model.head, (1.0, 4.0)))
    model.guided = scrambled(GuidedTransformer(model, model.flow_map, (1.0, 4.0)))
    return model


def slowly(model: MAR, label: int, seed: int, cfg: float, config: SamplerConfig) -> torch.Tensor:
    """One sample, token by token."""
    generator = torch.Generator().manual_seed(seed)
    order, latents = torch.randperm(TOKENS, generator=generator), torch.zeros(1, TOKENS, CHANNELS)
    noise, known = torch.randn(TOKENS, CHANNELS, generator=generator), 0
    transformer, flow_map = model.guided.transformer, model.guided.flow_map
    for end in known_after_steps(TOKENS, config.ar_steps):
        scale = torch.tensor([[guidance(cfg, end, TOKENS, config.cfg_schedule)]])
        positions = order[None, :known], order[None, known:end]
        conds = transformer.condition(latents, torch.tensor([label]), *positions, scale=scale)[0]
        for position, cond in zip(order[known:end], conds):
            x = noise[position]
            for jump in range(config.head_evaluations):
                s, t = (torch.tensor((jump + more) / config.head_evaluations) for more in (0, 1))
                x = flow_map(x, s, t, flow_map.embed_guided(cond, scale=scale[0]))
            latents[0, position] = x
        known = end
    return latents[0]


@pytest.mark.parametrize("cfg", [1.0, 2.5])
@pytest.mark.parametrize("options", [{}, {"cfg_schedule": "constant"}, {"head_evaluations": 1, "ar_steps": 5}])
def test_samples_in_one_pass_are_those_of_the_slow_sampler(model, options, cfg):
    config = settings(**ONE_PASS | options)
    expected = torch.stack([slowly(model, label, seed, cfg, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, cfg, config), expected, rtol=1e-4, atol=1e-5)


def test_untrained_and_without_guidance_one_pass_draws_what_the_map_draws():
    model = small_mar()
    model.flow_map = scrambled(FlowMap(model.head, (1.0, 4.0)))
    model.guided = GuidedTransformer(model, model.flow_map, (1.0, 4.0))
    by_map = sample_latents(model, LABELS, SEEDS, 1.0, settings(head="map", head_evaluations=2))
    assert torch.equal(sample_latents(model, LABELS, SEEDS, 1.0, settings(**ONE_PASS)), by_map)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_sample_in_one_pass_is_the_same_at_any_batch_size(model, batch):
    config = settings(**ONE_PASS, encoder_every=2, decoder_every=2, ar_steps=5)
    whole = sample_latents(model, LABELS, SEEDS, 3.0, config)
    parts = [
        sample_latents(model, LABELS[i : i + batch], SEEDS[i : i + batch], 3.0, config) for i in range(0, 6, batch)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("saving", ["skip_unread", "share_first", "one_batch", "share_times", "cuda_graphs"])
def test_exact_savings_are_exact_in_one_pass(model, saving):
    labels = torch.tensor([3, 1, 3, 3, 0, 1])
    config = {**ONE_PASS, "decoder_every": 3, "encoder_every": 2, "ar_steps": 5}
    found = [sample_latents(model, labels, SEEDS, 3.0, settings(**config, **{saving: on})) for on in (True, False)]
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_guided_sample_takes_the_arithmetic_of_an_unguided_one_but_for_the_scales_embedding(model):
    def flops(cfg: float, **options) -> int:
        with FlopCounterMode(display=False) as counter:
            sample_latents(model, LABELS, SEEDS, cfg, settings(head="map", head_evaluations=2, **options))
        return counter.get_total_flops()

    width, steps = model.config.width, 3
    embedding = 2 * (width + width * width) * len(LABELS) * steps
    assert flops(3.0, one_pass=True) - embedding == flops(1.0) < 0.6 * flops(3.0)


def test_guidance_that_it_does_not_serve_is_refused_with_what_to_write(model, monkeypatch):
    monkeypatch.setattr(model.config, "sampler", settings(**ONE_PASS))
    with pytest.raises(UserError, match=r"from 1 to 4.*distil_guidance\.guidance=\["):
        model.sample(LABELS, SEEDS, 4.5)
    assert model.sample(LABELS, SEEDS, 4.0).shape == (6, TOKENS, CHANNELS)


def test_one_pass_without_the_map_is_refused_and_while_training_the_flow_takes_its_own_steps():
    with pytest.raises(ValueError, match="head=map"):
        settings(one_pass=True)
    model = small_mar()
    model.config.sampler = settings(**ONE_PASS)
    assert torch.equal(model.sample(LABELS, SEEDS, 2.0), sample_latents(model, LABELS, SEEDS, 2.0, settings()))


def batch(images: int) -> dict[str, torch.Tensor]:
    latents = torch.randn(images, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(3))
    return {"latents": latents, "label": torch.arange(images) % CLASSES}


def objective(model: MAR | None = None, **options) -> GuidanceDistillation:
    model, config = model or small_mar(), DistilConfig(**{"solver_steps": STEPS, "jumps": 3, **options})
    return GuidanceDistillation(model, FlowMap(model.head, (1.0, 4.0)), LatentNormaliser(CHANNELS), config)


def test_the_loss_is_the_squared_error_of_the_mean_velocity_under_the_condition_that_the_copy_makes_of_class_and_scale():
    distillation, data, random = objective(), batch(4), StepRandom(0, 7)
    guided = scrambled(distillation.guided)
    loss, solutions = distillation(data, random).loss, distillation.solve(data, random)
    count = solutions.states.shape[1]
    order = random.uniform("order", 4, TOKENS).argsort(dim=1)
    start, end = draw_jumps(distillation.config, random.uniform("jumps", 4, count, 3, 4))
    errors = []
    for image in range(4):
        one, scale = slice(image, image + 1), solutions.scale[image]
        places = order[one, count:], order[one, :count]
        conds = guided.transformer.condition(data["latents"][one], data["label"][one], *places, scale=scale)[0]
        for token in range(count):
            embedded, states = (
                guided.flow_map.embed_guided(conds[token], scale=scale[0]),
                solutions.states[image, token],
            )
            for i, j in zip(start[image, token].tolist(), end[image, token].tolist()):
                s, t = torch.tensor(i / STEPS), torch.tensor(j / STEPS)
                jumped = guided.flow_map(states[i], s, t, embedded)
                errors.append(((jumped - states[j]) / (t - s)).square().mean())
    torch.testing.assert_close(loss, torch.stack(errors).mean(), rtol=1e-4, atol=1e-6)


def test_transformer_and_map_are_trained_without_dropout_and_the_generator_stays_as_it_is():
    model = small_mar(dropout=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    distillation = objective(model)
    losses = [distillation.train(mode)(batch(4), StepRandom(0, 2)).loss for mode in (True, False)]
    assert torch.equal(*losses)
    losses[0].backward()
    trained = {name for name, p in distillation.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"flow_map"} | {"guided"}
    assert all(p.grad is not None for p in distillation.parameters() if p.requires_grad)
    torch.optim.SGD([p for p in distillation.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_training_brings_the_one_pass_nearer_to_the_guided_solutions_of_two():
    torch.manual_seed(0)
    distillation, data = objective(jumps=8, guidance=(1.0, 3.0)), batch(24)
    first = distillation.errors(data, StepRandom(9, 0))
    optimizer = torch.optim.Adam([p for p in distillation.parameters() if p.requires_grad], lr=5e-3)
    for step in range(80):
        optimizer.zero_grad()
        distillation(data, StepRandom(0, step)).loss.backward()
        optimizer.step()
    assert distillation.errors(data, StepRandom(9, 0))["error_of_2"] < 0.5 * first["error_of_2"]


@pytest.fixture
def saved(model, tmp_path):
    model.guided.save(tmp_path / "guided", "abc", {"seed": 0})
    return tmp_path / "guided"


def test_what_is_saved_is_read_as_it_was(model, saved):
    loaded = GuidedTransformer.load(saved, small_mar(encoder_depth=2, decoder_depth=2))
    assert loaded.fingerprint == model.guided.fingerprint and loaded.guidance == (1.0, 4.0)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert json.loads((saved / "config.json").read_text())["generator"] == "abc"


@pytest.mark.parametrize("change", [{"format": 7}, {"guidance": [1]}, {"guidance": None}, {"fingerprint": "0"}])
def test_what_is_damaged_is_refused_in_a_line_that_names_it(model, saved, change):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=str(saved)):
        GuidedTransformer.load(saved, model)


def test_what_was_made_for_another_model_or_has_no_weights_is_refused(model, saved):
    with pytest.raises(UserError, match="does not fit"):
        GuidedTransformer.load(saved, small_mar())
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=str(saved)):
        GuidedTransformer.load(saved, model)


def test_what_is_compiled_has_the_blocks_that_draw_in_one_pass(model):
    drawn_by = model.guided.transformer
    assert {*drawn_by.encoder, *drawn_by.decoder} <= set(model.compiled_parts)
    plain = copy.deepcopy(model)
    plain.guided = None
    assert set(plain.compiled_parts) == {*plain.encoder, *plain.decoder, plain.head}
