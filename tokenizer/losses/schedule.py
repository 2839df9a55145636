"""When a term starts, and how it grows to its weight."""

from __future__ import annotations


def ramp(step: int, start_step: int = 0, ramp_steps: int = 0) -> float:
    """Share in [0, 1] of its weight that a term has in step ``step`` (from 0): none before its start, then growing linearly."""
    return 0.0 if step < start_step else min(1.0, (step - start_step + 1) / max(1, ramp_steps))
