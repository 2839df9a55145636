"""What is found out once about the images of a place, and kept: beside them where that can be written, else in a cache folder.

The first process of every node makes it, and the others wait. It is written whole or not at all, so that runs which begin together
make the same twice at worst.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flowprior.errors import UserError, one_line

SECONDS_BETWEEN_LOOKS = 0.2

T = TypeVar("T")


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/flowprior``, or ``~/.cache/flowprior``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowprior"


def places(beside: Path | None, suffix: str, *of: object) -> list[Path]:
    """Where something about ``of`` may be kept, the first place preferred.

    Args:
        beside: the folder in which the images lie; None where that is no place to write.
        suffix: of the file.
        of: plain values: whose names differ, differ in name.
    """
    if beside is None:
        return [cache_folder() / f"{_digits(of)}{suffix}"]
    return [
        beside / f".flowprior-{_digits(of)}{suffix}",
        cache_folder() / f"{_digits(str(beside.absolute()), of)}{suffix}",
    ]


def _digits(*of: object) -> str:
    return hashlib.sha256(repr(of).encode()).hexdigest()[:16]


def kept_or_made(files: list[Path], read: Callable[[Path], T | None], make: Callable[[], Callable[[Path], None]]) -> T:
    """What ``read`` gives of one of ``files``, which ``make`` writes where none of them has it.

    Args:
        files: where it may lie, see :func:`places`.
        read: the file's contents, or None where it is not there, damaged, or of other images.
        make: finds it out, and returns what writes it to a path.

    Raises:
        UserError: none of the places can be written.
    """
    if (found := _first(files, read)) is not None:
        return found
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return _awaited(files, read)
    _write(files, make())  # which holds what it writes, and no longer than that
    if (found := _first(files, read)) is None:
        raise UserError(
            f"what was found out about the images cannot be read again in {files[0].parent}: run the same command again"
        )
    return found


def _write(files: list[Path], write: Callable[[Path], None]) -> None:
    problems = []
    for file in files:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            return write(file)
        except OSError as error:
            problems.append(f"{file.parent}: {one_line(error)}")
    raise UserError(
        f"what was found out about the images can be kept nowhere ({'; '.join(problems)}): set XDG_CACHE_HOME to a folder that can be written"
    )


def _first(files: list[Path], read: Callable[[Path], T | None]) -> T | None:
    return next((found for file in files if (found := read(file)) is not None), None)


def _awaited(files: list[Path], read: Callable[[Path], T | None]) -> T:
    """Look again whenever one of the files has changed; where the first process fails, torchrun ends this one."""
    seen: list[object] = []
    while True:
        now = [_identity(file) for file in files]
        if now != seen and (found := _first(files, read)) is not None:
            return found
        seen = now
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _identity(file: Path) -> object:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
