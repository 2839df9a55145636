"""The progress bar of long work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

SECONDS_ON_A_TERMINAL, SECONDS_IN_A_FILE = 0.5, 10.0


def progress_bar(work: Iterable[Any] | None = None, **options: Any) -> tqdm:
    """``tqdm`` with rate and ETA, as wide as the terminal; where standard error is a file, a line every ten seconds."""
    seconds = SECONDS_ON_A_TERMINAL if sys.stderr.isatty() else SECONDS_IN_A_FILE
    return tqdm(work, dynamic_ncols=True, mininterval=seconds, **options)
