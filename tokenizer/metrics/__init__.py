"""Measures of reconstructions, by name.

A new one is a file with a class like :class:`~tokenizer.metrics.base.Meter`, and a line in ``METERS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from tokenizer.metrics.base import Meter, MeterContext

METERS = {
    "fidelity": "tokenizer.metrics.fidelity:FidelityMeter",
    "lpips": "tokenizer.metrics.lpips:LPIPSMeter",
    "rfid": "tokenizer.metrics.rfid:RFIDMeter",
}


def check_meters(names: Sequence[str]) -> None:
    """A ``ValueError`` with the known names unless all are of ``METERS``."""
    if unknown := set(names) - set(METERS):
        raise ValueError(f"metrics are a list of {', '.join(METERS)}, not of {', '.join(sorted(unknown))}")


def build_meters(names: Sequence[str], context: MeterContext) -> list[Meter]:
    """The meters of these names; a :class:`~flowprior.errors.UserError` where weights cannot be had."""
    built = []
    for name in names:
        module, kind = METERS[name].split(":")
        built.append(getattr(importlib.import_module(module), kind)(context))
    return built
