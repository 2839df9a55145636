import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.training.randomness import StepRandom, seed_global_generators, stratified_uniform, stream_seed


@given(st.integers(1, 4096), st.integers(0, 2**31))
def test_every_stratum_holds_one_number(count, seed):
    draws = stratified_uniform(count, torch.Generator().manual_seed(seed))
    assert draws.min() >= 0 and draws.max() < 1
    places = draws.sort().values * count - torch.arange(count)
    assert places.min() > -1e-3 and places.max() < 1 + 1e-3


def test_each_number_is_uniform_by_itself(generator):
    draws = torch.stack([stratified_uniform(5, generator) for _ in range(8000)]).double()
    for place in range(5):
        counts = torch.histc(draws[:, place], 10, 0, 1)
        assert ((counts - 800) ** 2 / 800).sum() < 33.7  # chi-square, 9 degrees of freedom, 1 in 10,000


def test_a_mean_over_strata_has_less_variance_than_one_over_independent_draws(generator):
    stratified = torch.stack([stratified_uniform(16, generator).square().mean() for _ in range(500)])
    independent = torch.rand(500, 16, generator=generator).square().mean(1)
    assert stratified.var() < 0.05 * independent.var()


@settings(max_examples=60)
@given(
    batch=st.integers(1, 9),
    shape=st.lists(st.integers(1, 5), max_size=3),
    slots=st.sampled_from([2, 3, 4]),
    step=st.integers(0, 10**6),
    kind=st.sampled_from(["normal", "uniform", "times"]),
)
def test_the_draws_of_all_slots_laid_end_to_end_are_the_draw_of_one_slot(batch, shape, slots, step, kind):
    whole = getattr(StepRandom(5, step), kind)("noise", slots * batch, *shape)
    parts = [getattr(StepRandom(5, step, slot, slots), kind)("noise", batch, *shape) for slot in range(slots)]
    assert whole.shape == (slots * batch, *shape) and parts[0].shape == (batch, *shape)
    assert torch.equal(torch.cat(parts), whole)


def test_draws_differ_by_seed_step_name_and_nothing_is_drawn_from_the_global_generator():
    before = torch.get_rng_state()
    draws = [
        StepRandom(seed, step).normal(name, 4) for seed, step, name in itertools.product((0, 1), (0, 1), ("a", "b"))
    ]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(draws, 2))
    assert torch.equal(torch.get_rng_state(), before)


@given(
    st.lists(
        st.tuples(*[st.integers(-5, 5) | st.sampled_from(["", "1", "a", "a,", "'"])] * 3),
        min_size=2,
        max_size=30,
        unique_by=repr,
    )
)
def test_seeds_of_different_streams_are_distinct_and_fit_63_bits(streams):
    seeds = [stream_seed(*parts) for parts in streams]
    assert len(set(seeds)) == len(streams) and all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_streams_share_no_bits():
    differing = [bin(stream_seed(0, step) ^ stream_seed(0, step + 1)).count("1") for step in range(1000)]
    assert sum(differing) / 1000 == pytest.approx(31.5, abs=1)


def test_dropout_is_decided_by_seed_step_and_slot():
    masks = []
    for seed, step, slot in [(0, 0, 0), (0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        torch.rand(7)
        StepRandom(seed, step, slot, 2).seed_dropout()
        masks.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(masks[0], masks[1]) and all(not torch.equal(masks[0], mask) for mask in masks[2:])


def test_the_global_seed_decides_initial_weights():
    weights = []
    for seed in (0, 0, 1):
        seed_global_generators(seed, "weights")
        weights.append(torch.nn.Linear(3, 3).weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
