"""Mistakes that a person can mend, and the guard that turns them into one line."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

USER_ERROR_EXIT = 2
NON_FINITE_EXIT = 3


class UserError(Exception):
    """A mistake in a config, a path, a checkpoint, a cache or an image.

    The message is one sentence that names the thing and says what to write or run instead.
    Entry points wrapped in :func:`entry_point` print it on stderr and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        # A data loader's worker hands its exception on with a traceback inside the message: the sentence is its end.
        super().__init__(message.rsplit("UserError: ", 1)[-1].strip() if "Original Traceback" in message else message)


class NonFiniteLoss(Exception):
    """The loss or its gradient is NaN or infinite. Nothing was stepped; the last checkpoint is as it was. Exit code 3."""


def entry_point(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a ``main`` so that a person's mistake becomes one line on stderr and exit code 2, and divergence one line and code 3."""

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except UserError as error:
            _say_once(f"error: {' '.join(str(error).split())}")
            sys.exit(USER_ERROR_EXIT)
        except NonFiniteLoss as error:
            print(
                f"stopped: {error}; the last checkpoint is intact (a lower optim.lr may help)",
                file=sys.stderr,
                flush=True,
            )
            sys.exit(NON_FINITE_EXIT)
        except OSError as error:
            if error.errno is None:  # not the system's answer, but some library's own
                raise
            _say_once(f"error: {error.filename or 'input or output'}: {error.strerror}")
            sys.exit(USER_ERROR_EXIT)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
            sys.exit(130)

    return guarded


def _say_once(line: str) -> None:
    """Print ``line``, from one of the processes only where the scripts started several.

    torchrun reports every failure as exit code 1, so the scripts learn from the file ``FLOWPRIOR_USER_ERROR`` that it was a mistake.
    """
    note = os.environ.get("FLOWPRIOR_USER_ERROR")
    if note:
        try:
            os.close(os.open(f"{note}.said", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        with open(note, "w") as file:
            print(line, file=file)
    print(line, file=sys.stderr, flush=True)
