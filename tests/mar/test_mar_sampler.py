import gc
import math
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from flowprior.flow.velocity import VelocityMLP
from mar.head import Head
from mar.model import MAR
from mar.sampler import SamplerConfig, guidance, known_after_steps, sample_latents
from slow_mar import LABELS, SEEDS, TOKENS, settings, slowly, small_mar


@pytest.fixture(scope="module")
def model() -> MAR:
    return small_mar()


@given(st.integers(1, 300).flatmap(lambda tokens: st.tuples(st.just(tokens), st.integers(1, tokens))))
def test_every_step_makes_tokens_known_and_the_last_all_of_them(sizes):
    tokens, steps = sizes
    known = known_after_steps(tokens, steps)
    assert len(known) == steps and known[-1] == tokens
    assert all(before < after for before, after in zip([0, *known], known))


@pytest.mark.parametrize("tokens, steps", [(64, 64), (256, 64), (64, 16), (8, 8), (100, 7)])
def test_the_schedule_is_the_cosine_of_masked_tokens_with_one_new_token_at_least(tokens, steps):
    masked, expected = tokens, []
    for step in range(1, steps + 1):
        wanted = math.floor(tokens * math.cos(math.pi / 2 * step / steps)) if step < steps else 0
        masked = max(min(wanted, masked - 1), steps - step)
        expected.append(tokens - masked)
    assert known_after_steps(tokens, steps) == expected


@pytest.mark.parametrize("cfg, known, expected", [(3.0, 0, 1.0), (3.0, 5, 2.0), (3.0, 10, 3.0), (1.0, 4, 1.0)])
def test_guidance_grows_linearly_from_one_to_its_scale_or_stays(cfg, known, expected):
    assert guidance(cfg, known, 10, "linear") == pytest.approx(expected)
    assert guidance(cfg, known, 10, "constant") == cfg


@pytest.mark.parametrize(
    "cfg, schedule, steps", [(2.5, "linear", 3), (2.5, "constant", 3), (0.0, "constant", 5), (4.0, "linear", 64)]
)
def test_guided_samples_are_those_of_the_slow_sampler(model, cfg, schedule, steps):
    config = settings(cfg_schedule=schedule, ar_steps=steps, temperature=0.8)
    expected = torch.stack([slowly(model, label, seed, cfg, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, cfg, config), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("interval", [(0.0, 0.3), (0.25, 0.5), (0.6, 0.7)])
def test_outside_its_interval_of_flow_times_guidance_does_nothing(model, interval):
    config = settings(cfg_interval=interval)
    expected = torch.stack([slowly(model, label, seed, 3.0, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, 3.0, config), expected, rtol=1e-4, atol=1e-5)


SAVINGS = {
    "skip_unread": (True, False),
    "share_first": (True, False),
    "share_times": (True, False),
    "one_batch": (True, False),
    "cuda_graphs": (True, False),
}


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("name", [*SAVINGS, "all"])
def test_every_exact_saving_draws_the_samples_of_the_plain_path(model, name, cfg):
    plain = {saving: values[1] for saving, values in SAVINGS.items()}
    spared = {saving: values[0] if name in (saving, "all") else values[1] for saving, values in SAVINGS.items()}
    labels = torch.tensor([3, 1, 3, 3, 0, 1])
    expected = sample_latents(model, labels, SEEDS, cfg, settings(ar_steps=5, **plain))
    found = sample_latents(model, labels, SEEDS, cfg, settings(ar_steps=5, **spared))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def flops(model: MAR, cfg: float = 3.0, **options) -> int:
    with FlopCounterMode(display=False) as counter:
        sample_latents(model, LABELS, SEEDS, cfg, settings(ar_steps=5, **options))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["skip_unread", "share_first", "share_times"])
def test_every_exact_saving_saves_arithmetic(model, name):
    assert flops(model, **{name: True}) < flops(model, **{name: False})


def test_approximate_reuse_and_limited_guidance_save_arithmetic(model):
    assert flops(model, encoder_every=2) < flops(model)
    assert flops(model, cfg_interval=(0.0, 0.3)) < flops(model)


@pytest.mark.parametrize("one_batch", [True, False])
@pytest.mark.parametrize("solver", ["euler", "ab2", "midpoint", "heun"])
@given(evaluations=st.integers(1, 9), cfg=st.sampled_from([1.0, 2.0]))
def test_the_head_is_evaluated_as_often_as_is_asked_for(model, solver, one_batch, evaluations, cfg):
    calls = []
    hook = model.head.input.register_forward_hook(lambda *_: calls.append(1))
    config = settings(solver=solver, head_evaluations=evaluations, one_batch=one_batch)
    sample_latents(model, LABELS[:2], SEEDS[:2], cfg, config)
    hook.remove()
    halves = 2 if cfg != 1 and not one_batch else 1
    assert len(calls) == 3 * evaluations * halves


@pytest.mark.parametrize(
    "solver, steps, evaluations", [("euler", 7, 7), ("ab2", 7, 7), ("heun", 4, 8), ("midpoint", 4, 8)]
)
def test_evaluations_that_divide_into_steps_are_those_steps(model, solver, steps, evaluations):
    found = sample_latents(model, LABELS, SEEDS, 2.0, settings(solver=solver, head_evaluations=evaluations))
    assert torch.equal(found, sample_latents(model, LABELS, SEEDS, 2.0, settings(solver=solver, head_steps=steps)))


def test_with_more_evaluations_an_odd_number_of_them_comes_to_the_same_sample(model):
    exact = sample_latents(model, LABELS, SEEDS, 1.5, settings(head_steps=400, solver="midpoint"))
    errors = [
        (sample_latents(model, LABELS, SEEDS, 1.5, settings(head_evaluations=n, solver="heun")) - exact).abs().mean()
        for n in (9, 81)
    ]
    assert errors[1] < errors[0] / 3


@pytest.mark.parametrize("cfg", [1.0, 3.0])
def test_an_encoding_renewed_in_every_step_is_the_plain_path_and_a_rarer_one_is_near_it(model, cfg):
    plain = settings(ar_steps=5)
    exact = sample_latents(model, LABELS, SEEDS, cfg, plain)
    shared = sample_latents(model, LABELS, SEEDS, cfg, settings(ar_steps=5, encoder_every=5))
    error = (shared - exact).abs()
    order = torch.stack([torch.randperm(TOKENS, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])
    by_step = error.mean(2).gather(1, order).mean(0)  # (T,), one token a step
    assert by_step[:2].max() < 1e-5, "nothing is reused before the third step"
    assert 1e-4 < by_step[2:].mean() < 0.5 * exact.std()


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_guidance_of_one_is_no_guidance(model, schedule):
    config = settings(cfg_schedule=schedule)
    expected = torch.stack([slowly(model, label, seed, None, config) for label, seed in zip(LABELS.tolist(), SEEDS)])
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, 1.0, config), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sample_latents(model, LABELS, SEEDS, 1 + 1e-6, config), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_sample_is_the_same_at_any_batch_size(model, cfg, batch):
    whole = sample_latents(model, LABELS, SEEDS, cfg, settings())
    parts = [
        sample_latents(model, LABELS[i : i + batch], SEEDS[i : i + batch], cfg, settings()) for i in range(0, 6, batch)
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-5)


def test_a_sample_depends_on_its_seed_and_label_and_on_nothing_else(model):
    first = sample_latents(model, LABELS[:1], [5], 2.0, settings())
    torch.manual_seed(99)
    assert torch.equal(first, sample_latents(model, LABELS[:1], [5], 2.0, settings()))
    assert not torch.allclose(first, sample_latents(model, LABELS[:1], [6], 2.0, settings()), atol=1e-3)
    assert not torch.allclose(first, sample_latents(model, LABELS[1:2], [5], 2.0, settings()), atol=1e-3)
    torch.testing.assert_close(
        sample_latents(model, LABELS[[2, 0]], [7, 5], 2.0, settings())[1:], first, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("solver", ["euler", "ab2", "midpoint", "heun"])
def test_all_solvers_approach_the_same_sample(model, solver):
    exact = sample_latents(model, LABELS, SEEDS, 1.5, settings(head_steps=400, solver="midpoint"))
    errors = [
        (sample_latents(model, LABELS, SEEDS, 1.5, settings(head_steps=steps, solver=solver)) - exact).abs().max()
        for steps in (10, 40)
    ]
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize(
    "values",
    [
        {"ar_steps": 0},
        {"head_steps": 0},
        {"temperature": 0.0},
        {"encoder_every": 0},
        {"decoder_every": 0},
        {"head_evaluations": -1},
        {"head_evaluations": 4, "head_evaluations_last": 5},
        {"head_evaluations_last": 1},
        {"cfg_damping": -0.1},
        {"head": "map"},
        {"head": "map", "head_evaluations": 5},
        {"head": "map", "head_evaluations": 2, "cfg_interval": (0.0, 0.5)},
        {"head": "map", "head_evaluations": 2, "cfg_damping": 0.5},
        {"cfg_interval": (0.5, 0.1)},
        {"cfg_interval": (0.0, 1.1)},
    ],
)
def test_impossible_sampler_settings_are_refused(values):
    with pytest.raises(ValueError):
        SamplerConfig(**values)


def test_a_head_and_what_it_has_recorded_go_without_the_collector():
    head = Head(VelocityMLP(2, 8, 1, cond_channels=4), torch.add, settings(cuda_graphs=True))
    gone = weakref.ref(head)
    gc.disable()
    try:
        del head
        assert gone() is None
    finally:
        gc.enable()
