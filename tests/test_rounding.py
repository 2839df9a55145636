"""Numbers for people: no figure is shown as 0.000 that was measured to be more."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowprior.rounding import rounded, rounded_with_error


@given(st.floats(-1e6, 1e6), st.sampled_from([".1f", ".3f", ".4f"]))
def test_a_rounded_number_is_off_by_a_twentieth_at_most_and_has_the_usual_places_where_these_show_two_digits(
    value, form
):
    shown = rounded(value, form)
    if abs(value) >= 1e-8:
        assert math.isclose(float(shown), value, rel_tol=0.0501)
    else:
        assert float(shown) == 0 and "-" not in shown
    if abs(value) >= 10.0 ** (1 - int(form[1])):
        assert shown == f"{value:{form}}"


@pytest.mark.parametrize(
    ("value", "error", "form", "shown"),
    [
        (0.064, 0.012, ".3f", ("0.064", "0.012")),
        (0.0031, 0.0012, ".3f", ("0.0031", "0.0012")),
        (31.52, 0.004, ".2f", ("31.520", "0.004")),
        (0.0281, 0.00034, ".3f", ("0.0281", "0.0003")),
        (-0.0004, 0.0013, ".1%", ("0.0%", "0.1%")),  # nothing but its error
        (0.0031, 0.0002, ".1%", ("0.31%", "0.02%")),
        (3.1e-7, 2e-8, ".3f", ("3.1e-07", "2e-08")),
        (8.2, 0.3, ".0f", ("8", "0")),  # whole numbers are asked for
        (0.987, 0.0, ".3f", ("0.987", "0.000")),
        (float("nan"), None, ".3f", ("nan", "")),
    ],
)
def test_a_value_and_its_error_have_the_places_that_show_both(value, error, form, shown):
    assert rounded_with_error(value, error, form) == shown
