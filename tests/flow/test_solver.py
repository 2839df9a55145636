import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowprior.flow.solver import EVALUATIONS_PER_STEP, integrate, integrate_over, sample

METHODS = sorted(EVALUATIONS_PER_STEP)


def growth(x, t):
    """x' = x cos(3 t), whose solution is x(0) exp(sin(3 t) / 3)."""
    return x * math.cos(3 * t)


def error(method, steps):
    return abs(integrate(growth, torch.ones((), dtype=torch.float64), steps, method).item() - math.exp(math.sin(3) / 3))


@pytest.mark.parametrize("method, order", [("euler", 1), ("ab2", 2), ("midpoint", 2), ("heun", 2)])
def test_halving_the_step_divides_the_error_as_the_methods_order_says(method, order):
    assert error(method, 200) / error(method, 400) == pytest.approx(2**order, rel=0.1)


def error_over(method, steps):
    """Over a grid whose last steps are many times its first ones, but alike in length to their neighbours."""
    times = [(step / steps) ** 2 for step in range(steps + 1)]
    x = integrate_over(growth, torch.ones((), dtype=torch.float64), times, method).item()
    return abs(x - math.exp(math.sin(3) / 3))


@pytest.mark.parametrize("method, order", [("euler", 1), ("ab2", 2), ("midpoint", 2), ("heun", 2)])
def test_a_method_keeps_its_order_over_steps_of_unequal_length(method, order):
    assert error_over(method, 200) / error_over(method, 400) == pytest.approx(2**order, rel=0.1)


def test_two_unequal_steps_of_ab2_are_exact_for_a_slope_that_is_linear_in_time_but_for_the_first():
    def slope(x, t):
        return torch.tensor(3 * t, dtype=torch.float64)

    x = integrate_over(slope, torch.zeros((), dtype=torch.float64), [0.0, 0.1, 1.0], "ab2")
    assert x.item() == pytest.approx(1.5 * (1 - 0.1**2), abs=1e-12)


@given(st.sampled_from(METHODS), st.integers(1, 400), st.booleans())
def test_a_solver_takes_exactly_the_steps_asked_for_and_stays_between_the_ends(method, steps, backward):
    times = []

    def velocity(x, t):
        times.append(t)
        return torch.ones_like(x)

    start, end = (1.0, 0.0) if backward else (0.0, 1.0)
    x = integrate(velocity, torch.zeros((), dtype=torch.float64), steps, method, start, end)
    assert len(times) == steps * EVALUATIONS_PER_STEP[method]
    # Exactly, or guidance would not reach the last one.
    assert min(times) >= 0 and max(times) <= 1 and times[0] == start
    assert x.item() == pytest.approx(end - start, abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_running_backward_undoes_running_forward(method):
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    there = integrate(growth, x, 4000, method)
    back = integrate(growth, there, 4000, method, 1.0, 0.0)
    assert (there - x).abs().max() > 0.05
    torch.testing.assert_close(back, x, rtol=0, atol=4e-3 if method == "euler" else 1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mean, std", [(2.0, 0.5), (-1.0, 2.0)])
def test_a_gaussians_exact_velocity_carries_noise_to_that_gaussian(method, mean, std):
    def velocity(x, t):
        return mean + (t * std**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * std**2) * (x - t * mean)

    noise = torch.linspace(-3, 3, 13, dtype=torch.float64)
    x = integrate(velocity, noise, 1000, method)
    torch.testing.assert_close(x, mean + std * noise, rtol=0, atol=1e-2 if method == "euler" else 1e-4)


def test_a_sample_is_decided_by_its_generator_and_carries_no_graph():
    weight = torch.tensor(0.5, requires_grad=True)
    draws = [
        sample(lambda x, t: weight * x, (4, 2), steps=3, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert draws[0].shape == (4, 2) and not draws[0].requires_grad
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_an_unknown_method_and_no_steps_are_refused():
    with pytest.raises(ValueError, match="euler, ab2, midpoint, heun"):
        integrate(growth, torch.ones(1), 5, "rk4")
    with pytest.raises(ValueError, match="at least one step"):
        integrate(growth, torch.ones(1), 0)
