import torch
from hypothesis import given
from hypothesis import strategies as st

from flowprior.flow.path import group_size_for, path_sample


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
