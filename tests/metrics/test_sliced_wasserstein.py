import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from flowprior.metrics.sliced_wasserstein import sliced_wasserstein


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shift", [0.0, 2.5, -7.0])
def test_on_the_line_shifted_points_are_as_far_apart_as_the_shift(shift):
    points = normal(50, 1)
    assert sliced_wasserstein(points, points[torch.randperm(50)] + shift) == pytest.approx(abs(shift), abs=1e-12)


@given(n=st.integers(1, 12), m=st.integers(1, 12), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_on_the_line_it_is_the_optimal_transport_of_samples_of_any_two_sizes(n, m, seed):
    a, b = normal(n, 1, seed=seed), normal(m, 1, seed=seed + 1) * 2
    # n m copies of each: an assignment between them is a transport plan between the two samples.
    cost = np.square(np.repeat(a.numpy(), m, 0) - np.repeat(b.numpy(), n, 0).T)
    rows, columns = linear_sum_assignment(cost)
    assert sliced_wasserstein(a, b, projections=3) == pytest.approx(cost[rows, columns].mean() ** 0.5, rel=1e-9)


@pytest.mark.parametrize("channels", [2, 3, 16])
def test_a_shift_in_space_counts_by_its_share_along_a_direction(channels):
    points, shift = normal(64, channels), normal(channels, seed=3)
    expected = shift.norm().item() / channels**0.5  # E <shift, w>^2 = |shift|^2 / C over unit vectors w
    assert sliced_wasserstein(points, points + shift, projections=20_000) == pytest.approx(expected, rel=0.02)


def test_a_scaled_gaussian_is_as_far_as_its_standard_deviation_differs():
    a, b = normal(40_000, 4), 3 * normal(30_000, 4, seed=1)
    assert sliced_wasserstein(a, b, projections=64) == pytest.approx(2.0, rel=0.01)


def test_it_is_symmetric_and_zero_between_a_sample_and_its_own_repetition():
    a, b = normal(30, 5), normal(17, 5, seed=1) + 1
    assert sliced_wasserstein(a, b) == pytest.approx(sliced_wasserstein(b, a), rel=1e-12)
    assert sliced_wasserstein(a, a.repeat(3, 1)) == pytest.approx(0.0, abs=1e-12)


def test_without_a_generator_it_is_the_same_in_every_call_and_with_one_it_is_that_ones():
    a, b = normal(30, 5), normal(30, 5, seed=1)
    assert sliced_wasserstein(a, b, 4) == sliced_wasserstein(a, b, 4)
    drawn = [sliced_wasserstein(a, b, 4, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_points_of_any_precision_are_compared(dtype):
    a = (normal(64, 3) * 4).round().to(dtype)
    assert sliced_wasserstein(a, a + 2) == pytest.approx(sliced_wasserstein(a.double(), a.double() + 2), rel=1e-4)


@pytest.mark.parametrize("a, b", [((3,), (3,)), ((3, 2), (3, 4)), ((0, 2), (3, 2)), ((3, 2), (0, 2))])
def test_samples_that_cannot_be_compared_are_refused(a, b):
    with pytest.raises(ValueError, match="two samples"):
        sliced_wasserstein(torch.zeros(a), torch.zeros(b))
    with pytest.raises(ValueError, match="projections"):
        sliced_wasserstein(torch.zeros(2, 2), torch.zeros(2, 2), projections=0)


def test_points_that_are_not_finite_give_nan():
    assert np.isnan(sliced_wasserstein(torch.tensor([[1.0, float("inf")]]), torch.zeros(2, 2)))
