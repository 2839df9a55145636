"""Shards read by offset: no handle's position is shared, and no more than a few files are open at once."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from flowprior.errors import UserError, one_line

MOST_OPEN = 64


class FileStamp(NamedTuple):
    """What changes when a file is written anew."""

    size: int
    time: int  # of the last change, in ns

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        return cls(status.st_size, status.st_mtime_ns)


class _Opened:
    """A file descriptor that is closed when nobody reads from it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardFiles:
    """Several files, opened when they are first read, the least recently read closed first.

    Threads may share it. A process that is forked, or that gets a pickled copy, opens files of its own.

    Args:
        paths: of the files.
        stamps: theirs, when they were looked through.
    """

    def __init__(self, paths: list[Path], stamps: list[FileStamp]) -> None:
        self.paths, self.stamps = paths, stamps
        self._begin()

    def _begin(self) -> None:
        self.process, self.lock, self.opened = os.getpid(), threading.Lock(), OrderedDict[int, _Opened]()

    def __getstate__(self) -> dict[str, object]:
        return {"paths": self.paths, "stamps": self.stamps}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._begin()

    def read(self, number: int, offset: int, size: int) -> bytes:
        """``size`` bytes of file ``number`` from ``offset`` on.

        Raises:
            UserError: the file is gone, was written anew, ends before, or cannot be read.
        """
        path = self.paths[number]
        try:
            opened, parts = self._open(number), []
            while size:
                part = os.pread(opened.descriptor, size, offset)
                if not part:
                    raise UserError(f"{path} ends within an image: restore it, and run the same command again")
                parts.append(part)
                offset, size = offset + len(part), size - len(part)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({one_line(error)}): restore it") from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _open(self, number: int) -> _Opened:
        if self.process != os.getpid():
            self._begin()
        with self.lock:
            if number in self.opened:
                self.opened.move_to_end(number)
                return self.opened[number]
            opened = _Opened(self.paths[number])
            if FileStamp.of(os.fstat(opened.descriptor)) != self.stamps[number]:
                raise UserError(f"{self.paths[number]} was changed since it was indexed: run the same command again")
            self.opened[number] = opened
            if len(self.opened) > MOST_OPEN:
                self.opened.popitem(last=False)
            return opened


class ShardPart(io.RawIOBase):
    """A part of one of the files, as a file of its own: a header is read without what comes behind it."""

    def __init__(self, files: ShardFiles, number: int, offset: int, size: int) -> None:
        self.files, self.number, self.offset, self.size, self.at = files, number, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.size}[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer) -> int:  # noqa: ANN001
        data = self.files.read(self.number, self.offset + self.at, max(0, min(len(buffer), self.size - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


class Window:
    """One file read from the front, with leaps: what is asked for next often lies in what was read last.

    Args:
        path: of the file.
    """

    NEAR, FAR = 256 << 10, 4 << 10  # bytes that are read at once where reading goes on, and behind a leap

    def __init__(self, path: Path) -> None:
        self.path, self.opened = path, _Opened(path)
        self.size = os.fstat(self.opened.descriptor).st_size
        self.start, self.data = 0, b""

    def at(self, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset`` on; fewer where the file ends."""
        first = offset - self.start
        if first < 0 or first + size > len(self.data):
            near = 0 <= first <= len(self.data) + self.NEAR
            self.data = self._read(offset, max(size, self.NEAR if near else self.FAR))
            self.start, first = offset, 0
        return self.data[first : first + size]

    def _read(self, offset: int, size: int) -> bytes:
        size, parts = min(size, max(0, self.size - offset)), []
        while size > 0 and (part := os.pread(self.opened.descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)
