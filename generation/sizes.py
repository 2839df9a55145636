"""Published sizes of a generator by name, each of which stands for several options of its config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def apply_size(config: Any, sizes: Mapping[str, Mapping[str, int]], default: str, section: str) -> None:
    """Give the options that ``config`` leaves at 0 the numbers of ``config.size``, or of the size ``default`` where that is empty.

    Args:
        config: with ``size`` and the options that sizes stand for.
        sizes: numbers of those options, by the size's name.
        default: the size where none is named.
        section: what a person writes before the names of the options.

    Raises:
        ValueError: there is no such size, or an option is written that the size says otherwise.
    """
    if config.size not in ("", *sizes):
        raise ValueError(f"size is one of {', '.join(sizes)}, or empty, not '{config.size}'")
    numbers = sizes[config.size or default]
    for name, value in numbers.items():
        written = getattr(config, name)
        if config.size and written not in (0, value):
            raise ValueError(
                f"size={config.size} has {name} {value}, not {written}: leave out {name}, or write {section}.size= with nothing behind it, and the "
                f"size (a preset's, say) gives way to {', '.join(numbers)} of your own"
            )
        setattr(config, name, written or value)
