"""Results that a comparison keeps between its calls, by the names of the runs' folders."""

from __future__ import annotations

from pathlib import Path

from flowprior.errors import UserError


def refuse_same_names(runs: list[Path]) -> None:
    """A :class:`UserError` where the results of two runs would be mistaken for each other's."""
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"two runs are called '{twice}', by which results are kept: rename one of the folders")
