"""Figures as a person reads them: with more decimals than usual where the usual ones would hide what was measured."""

from __future__ import annotations

import math

MOST_PLACES = 6  # beyond, an exponent is shorter
NOTHING = 1e-8  # what a difference of numbers that are equal leaves, in float64


def rounded(value: float, form: str = ".3f") -> str:
    """``value`` in a form ``.<places>f`` or ``.<places>%``, with more places where these would show fewer than two of its digits.

    Whole numbers, ``.0f``, stay whole; so does what is 0 but for rounding, which has no sign.
    """
    return rounded_with_error(value, None, form)[0]


def rounded_with_error(value: float, error: float | None, form: str = ".3f") -> tuple[str, str]:
    """``value`` and its ``error`` with as many places both: those of ``form``, and more where these would show none of the error's digits, or
    fewer than two of a value's that is larger than its error. Without an error, its text is empty."""
    kind, places, scale = form[-1], int(form[1:-1]), 100 if form.endswith("%") else 1
    if places:
        sure = value if error is None or abs(value) > error else 0.0
        places = max(places, _places(scale * sure, 2), _places(scale * (error or 0.0), 1))
    if places > MOST_PLACES:
        return f"{value:.1e}", "" if error is None else f"{error:.0e}"
    shown = f"{value:.{places}{kind}}"
    if not shown.strip("-0.%"):
        shown = shown.lstrip("-")
    return shown, "" if error is None else f"{error:.{places}{kind}}"


def _places(value: float, digits: int) -> int:
    """How many decimals show so many of its digits."""
    if not math.isfinite(value) or abs(value) < NOTHING:
        return 0
    return digits - 1 - math.floor(math.log10(abs(value)))
