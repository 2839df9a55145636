"""Mistakes that a person can mend, and the guard that turns them into one line."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from flowprior.notes import SAID

LOST_PROCESS_EXIT = 1
USER_ERROR_EXIT = 2
NON_FINITE_EXIT = 3
# A terminal's escape sequences (colours, titles, links) and control characters: libraries write them into messages.
CONTROL = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0e-\x1f\x7f-\x9f]"
)


class UserError(Exception):
    """A mistake in a config, a path, a checkpoint, a cache or an image.

    The message is one sentence that names the thing and says what to write or run instead.
    Entry points wrapped in :func:`entry_point` print it on stderr and exit with code 2.
    """

    def __init__(self, message: str) -> None:
        # A data loader's worker hands its exception on with a traceback inside the message: the sentence is its end.
        super().__init__(message.rsplit("UserError: ", 1)[-1].strip() if "Original Traceback" in message else message)


class NonFiniteLoss(Exception):
    """Losses or gradients are NaN or infinite. Nothing was stepped; the last checkpoint is as it was. Exit code 3."""


class LostProcess(Exception):
    """Another process of the run is gone, and so this one cannot go on. Exit code 1."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, outside of the training loop's steps. Exit code 143."""


def one_line(error: BaseException, limit: int | None = 160) -> str:
    """What an error says, on one line, without a terminal's control codes and cut to ``limit`` characters, for use inside another
    message; its type where it says nothing."""
    return " ".join(CONTROL.sub("", str(error)).split())[:limit] or type(error).__name__


def entry_point(main: Callable[[], None]) -> Callable[[], None]:
    """Wrap a ``main`` so that whatever ends it early is one line on stderr and an exit code.

    A person's mistake has code 2, divergence 3, the loss of another process 1, SIGTERM 143 and Ctrl-C 130.
    """

    @functools.wraps(main)
    def guarded() -> None:
        SAID.clear()  # of a command before, in the same process
        with _signals_raise() as raised:
            try:
                _call(main, raised)
            except UserError as error:
                _end(f"error: {one_line(error, limit=None)}", USER_ERROR_EXIT)
            except NonFiniteLoss as error:
                _end(f"stopped: {error}; the last checkpoint is intact (a lower optim.lr may help)", NON_FINITE_EXIT)
            except LostProcess as error:
                if not _was_said():
                    print(f"stopped: {error}", file=sys.stderr, flush=True)
                sys.exit(LOST_PROCESS_EXIT)
            except OSError as error:
                if error.errno is None:  # not the system's answer, but some library's own
                    raise
                _end(f"error: {error.filename or 'input or output'}: {error.strerror}", USER_ERROR_EXIT)
            except Terminated:
                _end("stopped by SIGTERM; run the same command again to go on", 128 + signal.SIGTERM)
            except KeyboardInterrupt:
                _end("interrupted; run the same command again to go on", 128 + signal.SIGINT)
            except SystemExit as stop:
                if isinstance(stop.code, int) and stop.code:
                    _note_exit_code(stop.code)
                raise
            except Exception:
                _note_exit_code(1)  # before torchrun ends the others, whose SIGTERM is not the reason
                raise

    return guarded


def _call(main: Callable[[], None], raised: list[KeyboardInterrupt]) -> None:
    """Call ``main``. An exception after a signal is the signal's own again: compiled code on its way, such as torch's over the bytes of
    a file, makes an error of its own of it, which a reader takes for a damaged file."""
    try:
        main()
    except Exception as error:
        if raised:
            raise raised[0] from error
        raise


@contextlib.contextmanager
def _signals_raise() -> Iterator[list[KeyboardInterrupt]]:
    """Within, SIGTERM unwinds the stack as Ctrl-C does, so that temporary files and locks go; a second one does not disturb that.

    The list holds what has been raised.
    """
    raised: list[KeyboardInterrupt] = []

    def terminate(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raised.append(Terminated())
        raise raised[-1]

    def interrupt(number: int, frame: Any) -> None:
        raised.append(KeyboardInterrupt())
        raise raised[-1]

    if threading.current_thread() is not threading.main_thread():
        yield raised
        return
    before = signal.signal(signal.SIGTERM, terminate)
    takes_interrupts = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # in the background it is ignored
    if takes_interrupts:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield raised
    finally:
        if takes_interrupts:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # One of several processes passes over torchrun's until it is gone.
        if "FLOWPRIOR_EXIT_CODE" not in os.environ or signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _end(line: str, code: int) -> None:
    """Print ``line`` and exit; where the scripts started several processes, they print it, once and behind torchrun's own report."""
    if threading.current_thread() is threading.main_thread():
        # A second one, or torchrun's, since another process was faster to end.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _note_exit_code(code, line)
    if not os.environ.get("FLOWPRIOR_EXIT_CODE"):
        print(line, file=sys.stderr, flush=True)
    sys.exit(code)


def _note_exit_code(code: int, line: str = "") -> None:
    """Leave the exit code and the last line, of the first process that has one, where the scripts look for them.

    torchrun reports every failure as exit code 1, so the scripts learn the run's own from the file ``FLOWPRIOR_EXIT_CODE``.
    """
    note = os.environ.get("FLOWPRIOR_EXIT_CODE")
    if not note:
        return
    try:
        with open(f"{note}.said", "x") as file:
            file.write(f"{line}\n" if line else "")
    except FileExistsError:
        return
    with open(note, "w") as file:
        print(code, file=file)


def _was_said() -> bool:
    note = os.environ.get("FLOWPRIOR_EXIT_CODE")
    return bool(note) and os.path.exists(f"{note}.said")
