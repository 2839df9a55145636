import torch
from hypothesis import given
from hypothesis import strategies as st

from flowprior.flow.path import draw_path, draw_path_of_step, group_size_for, path_sample
from flowprior.training.randomness import StepRandom


def test_the_path_starts_at_the_noise_and_ends_at_the_data(generator):
    noise, data = torch.randn(2, 4, 3, generator=generator)
    assert torch.equal(path_sample(noise, data, torch.zeros(4)).x_t, noise)
    assert torch.equal(path_sample(noise, data, torch.ones(())).x_t, data)


def test_its_velocity_is_the_derivative_of_the_point_by_the_time(generator):
    noise, data = torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64)
    t = torch.rand(4, 1, generator=generator, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda t: path_sample(noise, data, t).x_t, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(path_sample(noise, data, t).velocity, slope)


@given(st.integers(1, 300), st.integers(-3, 400))
def test_the_group_size_is_the_largest_divisor_that_is_not_above_the_wanted_one(count, wanted):
    assert group_size_for(count, wanted) == max(
        size for size in range(1, count + 1) if count % size == 0 and (size <= wanted or size == 1)
    )


@given(
    lead=st.sampled_from([(), (2,), (2, 3)]),
    pairs=st.integers(1, 3),
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
)
def test_a_draw_has_noise_for_every_token_of_a_pair_and_a_time_for_every_group_each_in_its_own_stratum(
    lead, pairs, groups, size
):
    tokens, generator = torch.zeros(*lead, groups * size, 2), torch.Generator().manual_seed(0)
    noise, t = draw_path(tokens, pairs=pairs, group_size=size, generator=generator)
    assert noise.shape == (*lead, pairs, groups * size, 2) and t.shape == (*lead, pairs, groups)
    assert (t.flatten() * t.numel()).floor().sort().values.tolist() == list(range(t.numel()))


def test_a_steps_draw_depends_on_the_tokens_place_in_the_global_batch_and_on_the_draws_name():
    tokens = torch.zeros(6, 4, 3)
    whole = draw_path_of_step(StepRandom(0, 7), tokens, pairs=2, group_size=2)
    parts = [draw_path_of_step(StepRandom(0, 7, slot, 3), tokens[:2], pairs=2, group_size=2) for slot in range(3)]
    assert all(torch.equal(all_of_it, torch.cat(part)) for all_of_it, part in zip(whole, zip(*parts)))
    other = draw_path_of_step(StepRandom(0, 7), tokens, pairs=2, group_size=2, name="online")
    assert not torch.equal(whole.noise, other.noise) and not torch.equal(whole.t, other.t)
