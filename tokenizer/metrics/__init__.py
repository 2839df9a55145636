"""Measures of reconstructions, by name.

A new one is a file with a class like :class:`~tokenizer.metrics.base.Meter`, and a line in ``METERS``.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizer.metrics.base import Meter, MeterContext
from tokenizer.metrics.fidelity import FidelityMeter
from tokenizer.metrics.lpips import LPIPSMeter
from tokenizer.metrics.rfid import RFIDMeter

METERS: dict[str, type[Meter]] = {"fidelity": FidelityMeter, "lpips": LPIPSMeter, "rfid": RFIDMeter}


def check_meters(names: Sequence[str]) -> None:
    """A ``ValueError`` with the known names unless all are of ``METERS``."""
    if unknown := set(names) - set(METERS):
        raise ValueError(f"metrics are a list of {', '.join(METERS)}, not of {', '.join(sorted(unknown))}")


def build_meters(names: Sequence[str], context: MeterContext) -> list[Meter]:
    """The meters of these names; a :class:`~flowprior.errors.UserError` where weights cannot be had."""
    return [METERS[name](context) for name in names]
