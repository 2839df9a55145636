"""One writer of a folder at a time: a lock that names its owner, and that the next process takes over once the owner is dead.

The file ``.lock`` in the folder holds who owns it, as JSON. What excludes is the system's own lock on that file, which ends with its
process, however that ends, and which no data loader's process inherits. File systems that several machines share may keep such locks to
each machine: there the owner's heartbeat, the file's time of change, tells whether it is alive.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.files import json_text

NAME = ".lock"
HEARTBEAT_SECONDS = 15
DEAD_AFTER_SECONDS = 120
TRIES = 100  # to make a folder beside runs that remove theirs
# safetensors writes under such a name beside the file, and renames it.
OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
NO_SYSTEM_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)

_held: set[tuple[int, int]] = set()  # the system's locks do not exclude a process from itself


class FolderLock:
    """The lock of one folder, see the module.

    Args:
        folder: made by :meth:`acquire` where it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / NAME
        self.made: list[Path] = []  # folders that are only there for the lock
        self.descriptor = -1
        self.about = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}
        self.stopped, self.beats = threading.Event(), threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Own the folder, taking over from an owner that is dead.

        Raises:
            UserError: another process owns it; the message says which and since when.
            OSError: the folder cannot be written.
        """
        while True:
            descriptor = self._open()
            try:
                inode = os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino
                if inode in _held:
                    raise BlockingIOError
                system_locks = _lock(descriptor)
                if not _is(self.file, inode):  # its owner removed it in between
                    os.close(descriptor)
                    continue
                owner = _read(descriptor)
                if owner and self._is_alive(owner, descriptor, system_locks):
                    raise BlockingIOError
                break
            except BlockingIOError:
                owner = _read(descriptor)
                if inode not in _held:  # closing any descriptor of a file ends this process's locks on it
                    os.close(descriptor)
                raise UserError(self._refusal(owner)) from None
        if owner:
            print(f"note: {self.folder}: going on after {_describe(owner)}, which is gone", file=sys.stderr, flush=True)
        sweep(self.folder)  # also where the owner ended well: another of its processes may have been killed
        self.descriptor, self.inode = descriptor, inode
        _held.add(inode)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json_text(self.about).encode(), 0)
        self.beats.start()

    def release(self) -> None:
        """Give the folder up; folders that only the lock needed go."""
        self.stopped.set()
        if self.beats.ident is not None:
            self.beats.join()
        with contextlib.suppress(OSError):
            if self._is_mine():
                self.file.unlink()
        _held.discard(self.inode)
        os.close(self.descriptor)
        for folder in reversed(self.made):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _open(self) -> int:
        """A descriptor of the lock's file. A run beside this one that ends may remove a folder, empty as yet, between any two steps."""
        for _ in range(TRIES - 1):
            with contextlib.suppress(FileNotFoundError):
                return self._open_once()
        return self._open_once()

    def _open_once(self) -> int:
        self._make_folder()
        return os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _make_folder(self) -> None:
        missing = [p for p in (self.folder, *self.folder.parents) if not p.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                self.made.append(folder)

    def _beat(self) -> None:
        while not self.stopped.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                if self._is_mine():
                    os.utime(self.descriptor)

    def _is_mine(self) -> bool:
        """Not so where another machine took this process for dead, when it was suspended, and has taken over."""
        return _is(self.file, self.inode) and _read(self.descriptor) in (self.about, {})

    def _is_alive(self, owner: dict[str, Any], descriptor: int, system_locks: bool) -> bool:
        """Whether an owner that does not hold the system's lock, as far as one can see here, is alive all the same."""
        if owner.get("host") == socket.gethostname():
            return not system_locks and _process_exists(owner.get("pid"))
        probe = self.folder / f"{NAME}.{os.getpid()}.tmp"  # for the time as the folder's own machine has it
        try:
            probe.touch()
            return probe.stat().st_mtime - os.fstat(descriptor).st_mtime < DEAD_AFTER_SECONDS
        finally:
            probe.unlink(missing_ok=True)

    def _refusal(self, owner: dict[str, Any]) -> str:
        return f"{self.folder} is being written by {_describe(owner)}: wait for it or stop it, or write run_dir=<another folder>"


@contextlib.contextmanager
def sole_writer(folder: Path, world: World, may_be_read_only: bool = False) -> Iterator[None]:
    """Within, this run is the only one that writes into ``folder``; the first process holds the lock for all.

    Args:
        folder: of a stage.
        world: of the run.
        may_be_read_only: go on without a lock where the folder cannot be written, for a run that has nothing to write.

    Raises:
        UserError: in every process, when another run writes there, or the folder cannot be written.
    """
    lock, problem = FolderLock(folder), None
    try:
        if world.is_main:
            try:
                with _signals_wait():
                    lock.acquire()
            except UserError as error:
                problem = str(error)
            except OSError as error:
                if not (may_be_read_only and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM)):
                    problem = f"cannot write into {folder}: {error.strerror}"
        if problem := world.broadcast(problem):
            raise UserError(problem)
        yield
    finally:
        with _signals_wait():
            if lock.descriptor >= 0:
                lock.release()


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Within, SIGTERM and Ctrl-C wait, so that no lock is left half made or half removed.

    Blocking them would not do: the system then hands them to another thread, and Python to the main one all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {
        number: signal.signal(number, lambda came, frame: waiting.append(came))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        for number in waiting:
            signal.raise_signal(number)


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed writer left; only the folder's owner may."""
    for remains in folder.rglob(".*tmp*"):
        *_, pid, end = remains.name.split(".")
        being_written = pid.isdigit() and int(pid) != os.getpid() and _process_exists(pid)
        ours = end == "tmp" and not being_written
        if remains.is_file() and (ours or OF_SAFETENSORS.fullmatch(remains.name)):
            remains.unlink(missing_ok=True)


def _lock(descriptor: int) -> bool:
    """Take the system's lock; False where the file system has none. A BlockingIOError when another process has it."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise BlockingIOError from None
        if error.errno in NO_SYSTEM_LOCKS:
            return False
        raise
    return True


def _is(file: Path, inode: tuple[int, int]) -> bool:
    try:
        return (file.stat().st_dev, file.stat().st_ino) == inode
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    try:
        owner = json.loads(os.pread(descriptor, 4096, 0))
    except (ValueError, RecursionError):  # nothing yet, half of it, or nobody's
        return {}
    return owner if isinstance(owner, dict) else {}


def _describe(owner: dict[str, Any]) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('pid')} on {owner.get('host')} (since {owner.get('since')})"


def _process_exists(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, TypeError, ValueError, OverflowError):
        return False
    return True
