"""Times moved towards noise by the dimension of the latents: in many dimensions a given share of noise hides less of an image."""

from __future__ import annotations

import math
from typing import TypeVar

from torch import Tensor

REFERENCE_DIMENSION = 4096  # of latents of 32 x 32 x 4, which times without a shift were tuned for
Time = TypeVar("Time", float, Tensor)


def shift_factor(choice: str, dimension: int) -> float:
    """The factor that ``choice``, a number above 0 or ``auto``, stands for: ``auto`` is sqrt(m / 4096) for latents of ``dimension`` m.

    Raises:
        ValueError: it is neither.
    """
    try:
        factor = math.sqrt(dimension / REFERENCE_DIMENSION) if choice == "auto" else float(choice)
    except ValueError:
        factor = 0.0
    if not 0 < factor < math.inf:
        raise ValueError(f"time_shift is a number above 0 or auto, not '{choice}'")
    return factor


def shifted(t: Time, factor: float) -> Time:
    """``t / (t + a (1 - t))``: the shift of SD3 (arXiv 2403.03206) and RAE (arXiv 2510.11690), whose time is ``1 - t``.

    With 1 nothing moves; above 1 all times but the ends come closer to noise, t = 0.
    """
    return t / (t + factor * (1 - t))
