"""The one exception for mistakes that a person can mend, and the guard that turns it into one line."""

from __future__ import annotations

import functools
import os
import sys
from typing import Callable


class UserError(Exception):
    """A mistake in a config, a path, a checkpoint, a cache or an image.

    The message is one sentence that names the thing and says what to write or run instead.
    Entry points wrapped in :func:`entry_point` print it on stderr and exit with code 2.
    """


def entry_point(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a ``main`` so that a :class:`UserError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def guarded() -> None:
        try:
            main()
        except UserError as error:
            line = " ".join(str(error).split())
            if int(os.environ.get("RANK", "0")) == 0:
                print(f"error: {line}", file=sys.stderr, flush=True)
            if os.environ.get("FLOWPRIOR_USER_ERROR"):  # scripts under torchrun, which reports every failure as exit code 1
                with open(os.environ["FLOWPRIOR_USER_ERROR"], "a") as file:
                    print(line, file=file)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
            sys.exit(130)

    return guarded
