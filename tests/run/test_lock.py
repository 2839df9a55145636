import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.lock import DEAD_AFTER_SECONDS, NAME, FolderLock, sole_writer


def owner(folder):
    return json.loads((folder / NAME).read_text())


def in_a_child(folder, then):
    """Fork, own the folder, tell so, and wait; returns the child's process id and the end of a pipe that lets it go on."""
    told, tell = os.pipe()
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            lock = FolderLock(folder)
            lock.acquire()
            os.write(tell, b"x")
            os.read(wait, 1)
            then(lock)
        finally:
            os._exit(1)
    assert os.read(told, 1) == b"x"
    return child, go


def test_the_owner_is_named_while_it_lives_and_the_folder_is_free_once_it_has_gone(tmp_path):
    child, go = in_a_child(tmp_path, lambda lock: lock.release())
    with pytest.raises(UserError) as refusal, sole_writer(tmp_path, World()):
        pass
    assert f"process {child} on {socket.gethostname()}" in str(refusal.value) and "since 20" in str(refusal.value)
    assert owner(tmp_path)["pid"] == child
    os.write(go, b"x")
    os.waitpid(child, 0)
    with sole_writer(tmp_path, World()):
        assert owner(tmp_path)["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_owner_is_taken_over_and_its_remains_are_swept(tmp_path, capsys):
    child, _ = in_a_child(tmp_path, lambda lock: None)
    for name in (f".result.json.{child}.tmp", ".tmpa1B2c3"):  # ours, and the one that safetensors makes
        (tmp_path / name).touch()
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert owner(tmp_path)["pid"] == child
    with sole_writer(tmp_path, World()):
        assert owner(tmp_path)["pid"] == os.getpid()
        assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert f"going on after process {child}" in capsys.readouterr().err


def test_a_process_that_the_owner_forked_does_not_keep_the_lock(tmp_path):
    def leave_a_child(lock):
        if os.fork() == 0:
            time.sleep(30)
        os._exit(0)

    child, go = in_a_child(tmp_path, leave_a_child)
    os.write(go, b"x")
    os.waitpid(child, 0)
    with sole_writer(tmp_path, World()):
        assert owner(tmp_path)["pid"] == os.getpid()


@pytest.mark.parametrize("age, free", [(0, False), (DEAD_AFTER_SECONDS - 20, False), (DEAD_AFTER_SECONDS + 1, True)])
def test_an_owner_on_another_machine_lives_as_long_as_its_heart_beats(age, free, tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"host": "elsewhere", "pid": os.getpid(), "since": "then"}))
    os.utime(tmp_path / NAME, (time.time() - age,) * 2)
    if free:
        with sole_writer(tmp_path, World()):
            assert owner(tmp_path)["host"] == socket.gethostname()
        return
    with pytest.raises(UserError, match=f"process {os.getpid()} on elsewhere"), sole_writer(tmp_path, World()):
        pass


def test_a_process_does_not_own_a_folder_twice(tmp_path):
    with sole_writer(tmp_path, World()):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), sole_writer(tmp_path, World()):
            pass
        command = [
            sys.executable,
            "-c",
            f"import fcntl; fcntl.lockf(open('{tmp_path / NAME}', 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)",
        ]
        assert subprocess.run(command, capture_output=True).returncode == 1  # the refusal did not give the lock away


def test_folders_that_only_the_lock_needed_go_with_it_and_others_stay(tmp_path):
    with sole_writer(tmp_path / "a" / "b", World()):
        assert (tmp_path / "a" / "b" / NAME).is_file()
    assert not (tmp_path / "a").exists()
    with sole_writer(tmp_path / "a" / "b", World()):
        (tmp_path / "a" / "b" / "result.json").touch()
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["result.json"]


@pytest.mark.parametrize("then", ["mkdir", "open"])
def test_a_run_that_ends_may_remove_the_folder_above_while_another_makes_its_own_in_it(then, tmp_path, monkeypatch):
    first, second = FolderLock(tmp_path / "run" / "ae"), FolderLock(tmp_path / "run" / "mar")
    first.acquire()
    module, make = (Path, Path.mkdir) if then == "mkdir" else (os, os.open)

    def after_the_first_has_ended(path, *rest, **options):
        if first.descriptor >= 0 and second.folder in (Path(path), Path(path).parent):
            with contextlib.suppress(OSError):
                second.folder.rmdir()
            first.release()
            first.descriptor = -1
            assert not (tmp_path / "run").exists()
        return make(path, *rest, **options)

    monkeypatch.setattr(module, then, after_the_first_has_ended)
    second.acquire()
    assert owner(second.folder)["pid"] == os.getpid()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_is_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot write into"), sole_writer(tmp_path / "run" / "ae", World()):
        pass


def test_half_a_lock_is_anybodys(tmp_path):
    (tmp_path / NAME).write_text('{"host": "else')
    with sole_writer(tmp_path, World()):
        assert owner(tmp_path)["pid"] == os.getpid()


def test_a_folder_that_cannot_be_made_is_a_user_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write into"), sole_writer(tmp_path / "file" / "x", World()):
        pass


def test_an_owner_that_was_taken_over_leaves_the_next_ones_lock(tmp_path):
    lock = FolderLock(tmp_path)
    lock.acquire()
    successor = {"host": "elsewhere", "pid": 1, "since": "now"}
    (tmp_path / NAME).write_text(json.dumps(successor))  # in the same file, as a takeover does
    lock.release()
    assert owner(tmp_path) == successor


def test_a_temporary_file_that_a_living_process_writes_is_not_swept(tmp_path):
    living, dead = tmp_path / f".grid.npz.{os.getppid()}.tmp", tmp_path / ".grid.npz.999999999.tmp"
    for file in (living, dead):
        file.touch()
    with sole_writer(tmp_path, World()):
        pass
    assert living.is_file() and not dead.exists()
