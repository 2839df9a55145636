"""SIGTERM and Ctrl-C, which end a run after the step under way."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

ONE_STOP_SECONDS = 1.0  # whoever signals a process group reaches a run twice, itself and through its script


class StopSignals:
    """Which signal has come, if any.

    Attributes:
        number: of the first signal; None before it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._came = 0.0

    @contextlib.contextmanager
    def noted(self, tell: bool) -> Iterator[None]:
        """Within, the first signal is noted, and on stderr where this process is to ``tell``; a second one ends the run at once.

        Those within :data:`ONE_STOP_SECONDS` of the first are the same one.
        """

        def note(number: int, frame: Any) -> None:
            if self.number is not None:
                if time.monotonic() - self._came < ONE_STOP_SECONDS:
                    return
                raise KeyboardInterrupt
            self.number, self._came = number, time.monotonic()
            # At once: an evaluation may take minutes to end. Not by sys.stderr, whose buffer may be in the middle of a line.
            if tell:
                with contextlib.suppress(OSError):
                    os.write(2, b"\nstopping after this step; a second Ctrl-C or SIGTERM stops at once\n")

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
