import math

import pytest
import torch
from scipy import stats
from torch import nn

from flowprior.errors import UserError
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.target_map import TargetMapSettings, fit_target_map
from flowprior.flow.times import TimeConfig
from flowprior.run.config import build_config
from flowprior.training.randomness import StepRandom, stratified_uniform

SHAPES = [(0.0, 1.0), (-0.8, 0.5), (1.2, 2.0)]


def scores(t: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    """What is standard normal if ``t`` is logit-normal."""
    return (torch.logit(t.double()) - mean) / std


@pytest.mark.parametrize("mean, std", SHAPES)
def test_logit_normal_times_are_those_of_the_logit_normal_distribution(mean, std, generator):
    u = torch.rand(20_000, generator=generator, dtype=torch.float64)
    t = TimeConfig("logit_normal", mean, std).quantile(u)
    assert stats.kstest(scores(t, mean, std).numpy(), "norm").pvalue > 0.01
    assert t.median().item() == pytest.approx(1 / (1 + math.exp(-mean)), abs=0.01)


@pytest.mark.parametrize("mean, std", SHAPES)
def test_stratified_numbers_give_one_time_in_each_stratum_of_equal_probability(mean, std, generator):
    t = TimeConfig("logit_normal", mean, std).quantile(stratified_uniform(256, generator).double())
    strata = (torch.special.ndtr(scores(t, mean, std)) * 256).floor().long()
    assert sorted(strata.tolist()) == list(range(256))


def test_every_number_in_the_unit_interval_gives_a_time_in_it():
    u = torch.tensor([0.0, 1e-30, 1e-6, 0.5, 1 - 1e-6])
    t = TimeConfig("logit_normal", 0.0, 3.0).quantile(u)
    assert torch.isfinite(t).all() and (t >= 0).all() and (t <= 1).all() and t[3] == 0.5


def test_uniform_times_are_the_numbers_themselves(generator):
    u = torch.rand(7, generator=generator)
    assert TimeConfig().quantile(u) is u


class Recording(nn.Module):
    """A velocity of zero that remembers the times."""

    def forward(self, x, t):
        self.t = t
        return torch.zeros_like(x)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_the_objective_looks_at_times_of_the_distribution_that_it_is_given(distribution, generator):
    features, velocity = torch.randn(512, 4, generator=generator), Recording()
    target_map = fit_target_map(features, TargetMapSettings(4, "identity"))
    FlowMatchingObjective(velocity, target_map, 8, 1, TimeConfig(distribution, 0.5, 0.7))(
        {"features": features}, StepRandom(0, 0)
    )
    t = velocity.t.flatten().double()
    expected = t if distribution == "uniform" else torch.special.ndtr(scores(t, 0.5, 0.7))
    assert t.numel() == 4096 and stats.kstest(expected.numpy(), "uniform").statistic < 1e-3  # stratified


@pytest.mark.parametrize("values", [{"std": 0}, {"std": -1}, {"distribution": "cosine"}])
def test_a_distribution_that_cannot_be_is_refused(values):
    with pytest.raises(UserError):
        build_config(TimeConfig, values, "times")
