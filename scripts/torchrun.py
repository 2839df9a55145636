"""torchrun, as the scripts start it: a signal ends it without a traceback, with exit code 143 or 130.

Whoever signals a process group, as ``timeout`` does, reaches torchrun twice, itself and through its script. It would hand on
both, and end before its processes at the third; here those of one moment are one.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from flowprior.training.stop_signals import ONE_STOP_SECONDS

# For the step or evaluation under way and its checkpoint, after which PyTorch kills; its own is 30, and below 2.12 always.
SECONDS_TO_END = 600
Handler = Callable[[int, Any], None]


def main() -> None:
    if handler := getattr(api, "_terminate_process_handler", None):  # PyTorch's own, and private
        api._terminate_process_handler = once_a_moment(handler)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SECONDS_TO_END))
    try:
        run.main()
    except api.SignalException as stop:
        _end(128 + stop.sigval)
    except KeyboardInterrupt:  # before there are processes
        _end(128 + signal.SIGINT)
    except ChildFailedError:
        if not _said():
            raise
        _end(1)


def once_a_moment(handler: Handler) -> Handler:
    """A handler that passes over the signals within :data:`ONE_STOP_SECONDS` of one that it took."""
    taken = -ONE_STOP_SECONDS

    def handle(number: int, frame: Any) -> None:
        nonlocal taken
        now = time.monotonic()
        if now - taken >= ONE_STOP_SECONDS:
            taken = now
            handler(number, frame)

    return handle


def _said() -> bool:
    """Whether a process left a last line, which the script prints."""
    said = Path(f"{os.environ.get('FLOWPRIOR_EXIT_CODE')}.said")
    return said.is_file() and said.stat().st_size > 0


def _end(code: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
