"""Notes on stderr: what a person should know about their input, and need not mend."""

from __future__ import annotations

import os
import sys

SAID: set[str] = set()


def note(line: str) -> None:
    """Print ``note: <line>`` on stderr, in the first of torchrun's processes only, and once a command: a place may be opened twice."""
    line = " ".join(line.splitlines())
    if os.environ.get("RANK", "0") == "0" and line not in SAID:
        SAID.add(line)
        print(f"note: {line}", file=sys.stderr, flush=True)


def forget_notes() -> None:
    """Let every note be printed anew, as a new command does."""
    SAID.clear()


def counted(number: int, one: str, several: str) -> str:
    """``1 class`` or ``2 classes``, for a sentence."""
    return f"{number} {one if number == 1 else several}"
