"""Published sizes of a generator by name, each of which stands for several options of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def apply_size(config: Any, sizes: Mapping[str, Mapping[str, int]], default: str) -> None:
    """Give the options that ``config`` leaves at 0 the numbers of ``config.size``, or of the size ``default`` where that is empty.

    Raises:
        ValueError: there is no such size, or an option is written that the size says otherwise.
    """
    if config.size not in ("", *sizes):
        raise ValueError(f"size is one of {', '.join(sizes)}, or empty, not '{config.size}'")
    for name, value in sizes[config.size or default].items():
        written = getattr(config, name)
        if config.size and written not in (0, value):
            raise ValueError(f"{config.size} has {name} {value}, not {written}: leave out size or {name}")
        setattr(config, name, written or value)
