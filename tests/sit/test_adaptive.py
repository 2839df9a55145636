import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torchdiffeq import odeint

from flowprior.errors import UserError
from sit.adaptive import dopri5

SPEEDS = torch.tensor([0.3, 4.0, 25.0, 1.0], dtype=torch.float64)


def state(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def swing(x, t, speed):
    """A nonlinear field whose stiffness differs from sample to sample; every argument broadcasts against ``x``."""
    return torch.sin(speed * t + x) - 0.2 * speed * x


class Counted:
    """Samples with speeds of their own, and how often each was evaluated."""

    def __init__(self, speeds):
        self.speeds, self.calls = speeds, torch.zeros(len(speeds), dtype=torch.long)

    def __call__(self, x, t, rows):
        self.calls[rows] += 1
        return swing(x, t.view(-1, 1, 1), self.speeds[rows].view(-1, 1, 1))


@settings(max_examples=40)
@given(
    st.lists(st.floats(0.0, 30.0), min_size=1, max_size=5),
    st.sampled_from([(1e-3, 1e-6), (1e-6, 1e-8), (0.1, 0.1)]),
    st.sampled_from([(0.0, 1.0), (0.2, 0.9)]),
)
def test_every_sample_is_solved_as_scipy_solves_it_alone_with_as_many_evaluations(speeds, tolerances, ends):
    (rtol, atol), (start, end) = tolerances, ends
    velocity, x = Counted(torch.tensor(speeds, dtype=torch.float64)), state(len(speeds))
    found = dopri5(velocity, x, start, end, rtol, atol)
    for row, speed in enumerate(speeds):

        def alone(t, y, speed=speed):
            return swing(torch.from_numpy(y), t, speed).numpy()

        expected = solve_ivp(alone, (start, end), x[row].flatten().numpy(), method="RK45", rtol=rtol, atol=atol)
        torch.testing.assert_close(
            found[row].flatten(), torch.from_numpy(expected.y[:, -1].copy()), rtol=1e-9, atol=1e-9
        )
        assert velocity.calls[row] == expected.nfev


def test_the_solution_is_torchdiffeqs():
    x = state(4)
    found = dopri5(Counted(SPEEDS), x, rtol=1e-9, atol=1e-9)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    expected = odeint(lambda t, y: swing(y, t, SPEEDS.view(-1, 1, 1)), x, times, rtol=1e-9, atol=1e-9, method="dopri5")[
        -1
    ]
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_a_sample_is_the_same_to_the_last_bit_whatever_is_solved_beside_it():
    x = state(4)
    together = dopri5(Counted(SPEEDS), x)
    for row in range(4):
        assert torch.equal(dopri5(Counted(SPEEDS[row : row + 1]), x[row : row + 1])[0], together[row])


def test_between_equal_times_nothing_moves_and_nothing_is_evaluated():
    assert torch.equal(dopri5(None, state(4), 0.3, 0.3), state(4))


def test_a_smaller_tolerance_gives_a_smaller_error():
    exact = state(4) * math.exp(math.sin(9) / 3)
    errors = [
        (dopri5(lambda x, t, rows: 3 * x * torch.cos(9 * t).view(-1, 1, 1), state(4), rtol=tol, atol=tol) - exact)
        .abs()
        .max()
        for tol in (1e-2, 1e-4, 1e-6)
    ]
    assert errors[2] < errors[1] / 10 < errors[0] / 100


@pytest.mark.parametrize(
    "velocity", [lambda x, t, rows: x * float("nan"), lambda x, t, rows: torch.where(x > 0, 1e30, -1e30) * x.abs()]
)
def test_where_no_step_is_short_enough_it_says_what_to_do(velocity):
    with pytest.raises(UserError, match="raise them, or write sampler.solver=heun"):
        dopri5(velocity, state(3).float(), rtol=1e-9, atol=1e-12)
