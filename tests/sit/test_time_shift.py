import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sit.time_shift import shift_factor, shifted

FACTORS = st.floats(0.05, 20)


@given(st.floats(0, 1), FACTORS)
def test_the_shift_is_the_papers_in_their_time_which_runs_from_data_to_noise(t, factor):
    s = 1 - t
    assert 1 - shifted(t, factor) == pytest.approx(factor * s / (1 + (factor - 1) * s), abs=1e-12)


@given(FACTORS)
def test_the_ends_stay_and_a_factor_above_one_moves_everything_else_towards_noise(factor):
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    moved = shifted(t, factor)
    assert moved[0] == 0 and moved[-1] == pytest.approx(1) and (moved.diff() > 0).all()
    assert (((moved - t)[1:-1] * (1 - factor)) >= 0).all()
    torch.testing.assert_close(shifted(moved, 1 / factor), t)


def test_one_leaves_times_as_they_are():
    t = torch.rand(100)
    assert torch.equal(shifted(t, 1.0), t)


@pytest.mark.parametrize("dimension, factor", [(4096, 1), (16 * 16 * 768, math.sqrt(48)), (64, 0.125)])
def test_auto_is_the_root_of_the_dimension_over_4096(dimension, factor):
    assert shift_factor("auto", dimension) == pytest.approx(factor)


@pytest.mark.parametrize("choice", ["0", "-1", "nan", "inf", "", "many"])
def test_what_is_no_factor_is_refused(choice):
    with pytest.raises(ValueError, match="a number above 0 or auto"):
        shift_factor(choice, 64)
