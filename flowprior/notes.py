"""Notes on stderr: what a person should know about their input, and need not mend."""

from __future__ import annotations

import os
import sys


def note(line: str) -> None:
    """Print ``note: <line>`` on stderr, in the first of torchrun's processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {' '.join(line.splitlines())}", file=sys.stderr, flush=True)


def counted(number: int, one: str, several: str) -> str:
    """``1 class`` or ``2 classes``, for a sentence."""
    return f"{number} {one if number == 1 else several}"
