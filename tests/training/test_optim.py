import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flowprior.training.ema import EMA
from flowprior.training.optim import OptimConfig, learning_rate, make_optimizer


def test_warm_up_rises_in_equal_steps_to_the_peak():
    config = OptimConfig(lr=1.0, warmup_steps=5)
    assert [learning_rate(step, 100, config) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@given(st.integers(0, 50), st.integers(51, 500), st.floats(0, 1))
def test_the_cosine_starts_at_the_peak_passes_half_way_at_half_time_and_ends_at_its_fraction(warmup, total, fraction):
    config = OptimConfig(lr=2.0, warmup_steps=warmup, final_lr_fraction=fraction)
    assert learning_rate(warmup, total, config) == pytest.approx(2.0)
    assert learning_rate(total, total, config) == pytest.approx(2.0 * fraction)
    assert learning_rate(total + 7, total, config) == pytest.approx(2.0 * fraction)
    if (total - warmup) % 2 == 0:
        assert learning_rate((total + warmup) // 2, total, config) == pytest.approx(1 + fraction)
    rates = [learning_rate(step, total, config) for step in range(warmup, total + 1)]
    assert all(after <= before for before, after in zip(rates, rates[1:]))


def test_a_constant_rate_is_constant_after_the_warm_up():
    config = OptimConfig(lr=0.3, warmup_steps=2, schedule="constant")
    assert {learning_rate(step, 10, config) for step in range(1, 40)} == {0.3}


def test_the_rate_depends_on_nothing_but_step_length_and_options():
    config = OptimConfig(lr=0.3, warmup_steps=3)
    forward = [learning_rate(step, 20, config) for step in range(20)]
    backward = [learning_rate(step, 20, dataclasses.replace(config)) for step in reversed(range(20))]
    assert forward == backward[::-1]


def test_matrices_decay_and_vectors_and_frozen_weights_do_not():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    kept = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = make_optimizer(module, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, kept[name] * (0.95 if name == "0.weight" else 1.0))


def test_what_a_module_anywhere_within_exempts_does_not_decay():
    class Exempting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        @property
        def no_decay(self):
            return self.head.parameters()

    module = nn.ModuleDict({"model": Exempting(), "beside": nn.Linear(2, 2)})
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decayed, others = make_optimizer(module, OptimConfig(weight_decay=0.5)).param_groups
    assert [names[id(p)] for p in decayed["params"]] == ["model.body.weight", "beside.weight"]
    assert {names[id(p)] for p in others["params"]} == set(names.values()) - {"model.body.weight", "beside.weight"}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.5, 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.0},
        {"lr": float("nan")},
        {"ema_decay": 1.0},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -1.0},
        {"warmup_steps": -1},
        {"clip_norm": -0.1},
    ],
)
def test_an_option_that_cannot_be_is_refused(options):
    with pytest.raises(ValueError):
        OptimConfig(**options)


def test_the_average_is_the_recursion_with_its_warm_up(generator):
    model, decay = nn.Linear(2, 1), 0.4
    ema = EMA(model, decay)
    expected = [w for p in model.parameters() for w in p.detach().double().flatten().tolist()]
    for step in range(20):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        current = [w for p in model.parameters() for w in p.detach().double().flatten().tolist()]
        d = min(decay, (1 + step) / (10 + step))
        expected = [d * average + (1 - d) * weight for average, weight in zip(expected, current)]
        ema.update(step)
        measured = torch.cat([average.flatten() for average in ema.average.values()]).double()
        torch.testing.assert_close(measured, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6)


def test_averages_are_matched_by_name_in_whatever_order_they_come():
    def model(names):
        return nn.ModuleDict({name: nn.Linear(2, 2) for name in names})

    source, target = EMA(model("abc"), 0.9), EMA(model("cba"), 0.9)
    target.load_state_dict(source.state_dict())
    assert all(torch.equal(target.average[name], value) for name, value in source.average.items())


@pytest.mark.parametrize("other", [nn.Linear(2, 2, bias=False), nn.Sequential(nn.Linear(2, 2)), nn.Linear(1, 1)])
def test_averages_of_another_model_are_refused(other):
    with pytest.raises(ValueError, match="another model"):
        EMA(nn.Linear(2, 2), 0.9).load_state_dict(EMA(other, 0.9).state_dict())


def test_frozen_weights_are_not_averaged():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert set(EMA(model, 0.9).average) == {"weight"}


def test_averaged_weights_are_in_place_within_and_the_trained_ones_after_even_when_it_fails():
    model = nn.Linear(2, 2)
    ema, trained = EMA(model, 0.9), model.weight.detach().clone() + 1
    average = ema.average["weight"].clone()
    with torch.no_grad():
        model.weight.copy_(trained)
    with pytest.raises(KeyError), ema.applied():
        assert torch.equal(model.weight, average)
        raise KeyError
    assert torch.equal(model.weight, trained)
