"""The index of shards: made once, by one process of a node, small, and never believed where it does not fit."""

import multiprocessing
import os
import shutil
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from flowprior.data.stores import index as index_module
from flowprior.data.stores import shards as shards_module
from flowprior.data.stores.base import ImageStore, StoreOptions
from flowprior.data.stores.index import COLUMNS, read_index, write_index
from flowprior.data.stores.indexing import THREADS
from flowprior.data.stores.recognise import open_store
from flowprior.data.stores.shard_files import Window
from flowprior.errors import UserError
from image_sets import pictures, write_shards, write_tar, write_zip

SOME = pictures(8)
BOUND = 64  # bytes a sample and process


def contents(store: ImageStore) -> list[tuple[bytes, int]]:
    return [(store.read(index), int(store.labels[index])) for index in range(len(store))]


@pytest.fixture(params=["tar", "zip"])
def place(request, tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    if request.param == "zip":
        return write_zip(tmp_path / "data" / "set.zip", SOME)
    return write_shards(tmp_path / "data" / "shards", SOME)


@pytest.fixture
def looks(monkeypatch) -> list[object]:
    """One entry for every time that shards are looked through."""
    found, through = [], shards_module.index_shards
    monkeypatch.setattr(shards_module, "index_shards", lambda *args: found.append(args) or through(*args))
    return found


def test_shards_are_looked_through_once_and_anew_when_one_of_them_changes(place, looks):
    first = open_store(str(place))
    assert contents(open_store(str(place))) == contents(first) and len(looks) == 1
    assert first.index_files[0].parent == first.shards[0].parent and first.index_files[0].is_file()
    os.utime(first.shards[-1], (1, 1))
    assert contents(open_store(str(place))) == contents(first) and len(looks) == 2
    assert contents(open_store(str(place))) == contents(first) and len(looks) == 2


def test_another_label_has_an_index_of_its_own_beside(place, looks):
    plain = open_store(str(place))
    none = open_store(str(place), StoreOptions(label_column="none"))
    assert len(none.class_names) == 1 and len(plain.class_names) == 2
    assert len(open_store(str(place)).class_names) == 2 and len(looks) == 2


def test_where_nothing_can_be_written_beside_the_shards_the_cache_folder_holds_the_index(
    place, looks, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write, beside = index_module.write_index, None

    def refuse(file: Path, *rest: object) -> None:
        if not file.is_relative_to(tmp_path / "cache"):
            raise PermissionError(13, "Permission denied")
        write(file, *rest)

    monkeypatch.setattr(shards_module, "write_index", refuse)
    store = open_store(str(place))
    assert contents(open_store(str(place))) == contents(store) and len(looks) == 1 and beside is None
    assert [file.suffix for file in (tmp_path / "cache" / "flowprior").iterdir()] == [".index"]
    monkeypatch.setattr(shards_module, "write_index", lambda *_: refuse(Path("/"), *_))
    os.utime(store.shards[0], (1, 1))
    with pytest.raises(UserError, match="kept nowhere .*Permission denied.* set XDG_CACHE_HOME"):
        open_store(str(place))


def test_an_index_that_is_damaged_anywhere_is_made_anew(place, looks):
    wanted, random = contents(open_store(str(place))), np.random.default_rng(0)
    [file] = open_store(str(place)).index_files[:1]
    whole = file.read_bytes()
    for trial in range(60):
        data = bytearray(whole)
        if trial % 3 == 0:
            data = data[: random.integers(len(data))]
        else:
            for at in random.integers(0, len(data), random.integers(1, 4)):
                data[at] ^= 1 << random.integers(8)
        before = len(looks)
        file.write_bytes(data)
        assert contents(open_store(str(place))) == wanted
        # Spaces behind the header say nothing; any other byte counts.
        assert len(looks) == before + (
            bytes(data) != whole and bytes(data).replace(b" ", b"") != whole.replace(b" ", b"")
        )


def parts(store) -> dict:
    return {name: np.array(getattr(store.index, name)) for name in COLUMNS}


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["offsets"].__setitem__(3, -1),
        lambda c: c["offsets"].__setitem__(3, 1 << 62),
        lambda c: c["sizes"].__setitem__(3, 1 << 30) or c["packed"].fill(1 << 30),
        lambda c: c["sizes"].__setitem__(3, -5),
        lambda c: c["labels"].__setitem__(3, 2),
        lambda c: c["labels"].__setitem__(3, -1),
        lambda c: c["name_ends"].__setitem__(3, 1 << 40),
        lambda c: c["name_ends"].__setitem__(-1, 3),
        lambda c: c["starts"].__setitem__(0, 1),
        lambda c: c["starts"].fill(99),
        lambda c: c.update(labels=c["labels"][:3]),
        lambda c: c.update(sizes=c["sizes"][:3]),
        lambda c: c.update(starts=np.append(c["starts"], 8)),
        lambda c: c.update(checks=np.zeros(3, np.int32)),
        lambda c: c.update({name: column[:0] for name, column in c.items()}),
    ],
)
def test_an_index_that_vouches_for_numbers_which_cannot_be_is_not_read(place, change):
    store = open_store(str(place))
    columns, sizes = parts(store), [shard.stat().st_size for shard in store.shards]
    about = {"made_from": store.made_from, "class_names": store.class_names, "notes": []}
    file = place.parent / "signed"

    def read():
        write_index(file, {name: lambda c=c: [c] for name, c in columns.items()}, about)
        return read_index(file, store.made_from, sizes)

    assert read() is not None
    change(columns)
    assert read() is None
    columns = parts(store)
    for odd in ({"class_names": []}, {"class_names": [1, 2]}, {"notes": [None]}, {"class_names": "ab"}):
        kept, about = about, about | odd
        assert read() is None or odd == {"class_names": "ab"}
        about = kept


def open_in_a_process(place: Path, local_rank: int, answers) -> None:
    os.environ["LOCAL_RANK"] = str(local_rank)
    looks, through = [], shards_module.index_shards

    def count(*args):
        looks.append(1)
        time.sleep(0.5)  # the others come meanwhile
        return through(*args)

    shards_module.index_shards = count
    answers.put((local_rank, len(looks), contents(open_store(str(place))), len(looks)))


def test_the_first_process_of_a_node_makes_the_index_and_the_others_wait_for_it(place):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=open_in_a_process, args=(place, rank, answers)) for rank in (1, 2, 0)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=300) for _ in processes)
    for process in processes:
        process.join()
    assert [(rank, looks) for rank, _, _, looks in found] == [(0, 1), (1, 0), (2, 0)]
    assert found[0][2] == found[1][2] == found[2][2] and len(found[0][2]) == 8


def test_a_node_that_writes_leaves_no_other_file_and_sweeps_what_dead_writers_left(place):
    folder = place.parent if place.is_file() else place
    file = open_store(str(place)).index_files[0]
    stale, fresh = (file.with_name(f"{file.name}.{name}.1.tmp") for name in ("dead", "alive"))
    stale.write_text("")
    fresh.write_text("")
    os.utime(stale, (1, 1))
    file.unlink()
    open_store(str(place))
    assert {f.name for f in folder.iterdir() if f.name.startswith(".")} == {file.name, fresh.name}


def test_twenty_thousand_samples_take_less_than_the_bound_to_index_and_to_hold(tmp_path):
    count = 20_000
    for shard in range(4):
        members = [
            (f"n{n % 1000:08d}_{n:08d}.{kind}", data)
            for n in range(shard * count // 4, (shard + 1) * count // 4)
            for kind, data in (("cls", b"%d" % (n % 1000)), ("jpg", b"\xff\xd8\xff" + bytes(90)))
        ]
        write_tar(tmp_path / f"{shard}.tar", members, format=0)
    open_store(str(write_shards(tmp_path / "few", SOME)))  # what is imported and made once
    shutil.rmtree(tmp_path / "few")
    tracemalloc.start()
    store = open_store(str(tmp_path))
    made = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    again = open_store(str(tmp_path))
    read = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    file_bytes = store.index_files[0].stat().st_size
    assert len(again) == count and again.read(19_999) == store.read(19_999)
    # Beside the pages of the file, which processes share, there is next to nothing.
    assert file_bytes + read < BOUND * count
    # In making it, a shard's own samples, the buffers that shards are read through, and the words of a thousand classes.
    assert made < BOUND * count + THREADS * 2 * Window.NEAR + 1000 * 200
