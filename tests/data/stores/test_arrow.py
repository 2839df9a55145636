"""Data sets that Hugging Face's library saved, and those that it has by name."""

import concurrent.futures
import json
import multiprocessing
import pickle
import sys

import numpy as np
import pytest

from flowprior.data.stores.base import StoreOptions
from flowprior.data.stores.files import FolderStore
from flowprior.data.stores.recognise import open_store
from flowprior.errors import UserError
from image_sets import as_dataset, pictures, write_folder, write_hub, write_saved

pyarrow = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")

SOME = pictures(11, ("ant", "bee", "cat"))
DATA = [image.data for image in SOME]


def contents(store) -> list[tuple[bytes, str]]:
    return [(store.read(index), store.class_names[store.labels[index]]) for index in range(len(store))]


def refusal(path, image: str = "", label: str = "") -> str:
    with pytest.raises(UserError) as raised:
        contents(open_store(str(path), StoreOptions(image, label)))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def saved(tmp_path):
    return write_saved(tmp_path / "saved", SOME, shards=3)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where ``datasets`` keeps what it has prepared."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def test_saved_and_named_data_sets_hold_the_same_bits_as_the_folder(tmp_path, saved, cache, capsys):
    folder = FolderStore(write_folder(tmp_path / "folder", SOME))
    kinds = {
        "saved": str(saved),
        "its files": str(saved / "data-*.arrow"),
        "rows that were chosen": str(write_chosen(tmp_path / "chosen")),
        "by name and split": write_hub(tmp_path / "hub", SOME),
        "by name": write_hub(tmp_path / "other", SOME).rpartition(":")[0],
        "a folder of images by name": f"hf://{tmp_path / 'folder'}:train",
    }
    for kind, place in kinds.items():
        store = open_store(place)
        assert store.kind == "arrow" and sorted(contents(store)) == sorted(contents(folder)), kind
        assert kind == "a folder of images by name" or contents(store) == contents(folder), kind
        assert store.class_names == ["ant", "bee", "cat"] and store.where == place
        assert "11 images (column 'image') of 3 classes" in capsys.readouterr().err
        assert store.lengths(2, 9) == [len(store.read(index)) for index in range(2, 9)]
        assert store.facts(0, 11) == store.facts(0, 4) + store.facts(4, 11)
    assert open_store(str(saved)).name(7) == f"{saved}: row 7"


def write_chosen(folder):
    """Saved after its rows were put in order by indices."""
    as_dataset(SOME[::-1]).select(range(10, -1, -1)).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_processes_and_threads_read_the_same(saved, context):
    store = open_store(str(saved))
    order = np.random.default_rng(0).integers(11, size=120).tolist()
    wanted = [DATA[index] for index in order]
    assert len(pickle.dumps(store)) < 4000  # no image goes along
    assert contents(pickle.loads(pickle.dumps(store))) == contents(store)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(store.read, order)) == wanted
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context(context)) as pool:
        assert list(pool.map(store.read, order, chunksize=30)) == wanted


def test_splits_are_refused_with_how_one_is_named(tmp_path, cache):
    both = datasets.DatasetDict({"train": as_dataset(SOME), "test": as_dataset(SOME[:3])})
    both.save_to_disk(str(tmp_path / "both"))
    assert f"holds the splits train, test: write DATA={tmp_path / 'both' / 'train'}, say" in refusal(tmp_path / "both")
    assert len(open_store(str(tmp_path / "both" / "test"))) == 3
    name, _, _ = write_hub(tmp_path / "hub", SOME).rpartition(":")
    as_dataset(SOME[:3]).to_parquet(str(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet"))
    assert f"has the splits train, test: write {name}:train, say" in refusal(name)
    assert len(open_store(f"{name}:test")) == 3 and len(open_store(f"{name}:train[2:7]")) == 5
    assert "cannot be had" in refusal(f"{name}:validation")


def test_a_name_that_stands_for_nothing_is_refused(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    path = f"hf://{tmp_path}/none"
    assert path in refusal(path) and "cannot be had" in refusal(path)


def test_two_columns_of_classes_are_told_apart_by_name(tmp_path, capsys):
    made = as_dataset(SOME, label="coarse").add_column("fine", list(range(11)))
    made = made.cast_column("fine", datasets.ClassLabel(names=[f"f{n}" for n in range(11)]))
    made.save_to_disk(str(tmp_path / "two"))
    assert "the columns coarse, fine, each of which may hold the labels" in refusal(tmp_path / "two")
    assert open_store(str(tmp_path / "two"), StoreOptions("", "fine")).class_names[10] == "f10"
    assert "of 11 classes, whose labels come from column 'fine'\n" in capsys.readouterr().err


def test_an_image_that_is_missing_or_only_named_is_refused_before_training(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    image = {"bytes": DATA[0], "path": None}
    table = datasets.Dataset.from_dict({"image": [image, image, None], "label": [0, 0, 0]}, features=features)
    table.save_to_disk(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="missing: row 2 is missing: its cell is empty"):
        open_store(str(tmp_path / "missing"))
    struct = pyarrow.array([image, {"bytes": None, "path": "/x.png"}])
    write_stream(tmp_path / "named.arrow", pyarrow.table({"image": struct}))
    with pytest.raises(UserError, match=r"named.arrow: row 1 is not in the table, which names /x.png alone"):
        open_store(str(tmp_path / "named.arrow"))


def write_stream(file, table) -> None:
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def test_files_of_other_classes_or_columns_are_refused(tmp_path):
    write_saved(tmp_path / "a", SOME, shards=1)
    write_saved(tmp_path / "b", [image._replace(label=f"{image.label}x") for image in SOME], shards=1)
    (tmp_path / "b" / "data-00000-of-00001.arrow").rename(tmp_path / "a" / "data-00001-of-00002.arrow")
    assert "the classes of the column 'label' have other names in" in refusal(tmp_path / "a" / "data-*.arrow")
    write_stream(tmp_path / "c.arrow", pyarrow.table({"image": DATA}))
    write_stream(tmp_path / "d.arrow", pyarrow.table({"photo": DATA}))
    assert "the columns of" in refusal(tmp_path / "{c,d}.arrow")


def test_damage_names_what_is_damaged(saved):
    file, whole = saved / "data-00001-of-00003.arrow", (saved / "data-00001-of-00003.arrow").read_bytes()
    for damaged in (whole[:-40], whole[: len(whole) // 2], b"no table at all", b""):
        file.write_bytes(damaged)
        assert str(saved) in refusal(saved)
    file.unlink()
    assert str(file) in refusal(saved)
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**state, "_data_files": 3}))
    assert "state.json is damaged" in refusal(saved)
    (saved / "state.json").write_text("{")
    assert "state.json" in refusal(saved)


def test_bytes_that_are_hit_are_never_more_than_a_mistake_that_names_the_data_set(saved):
    file = saved / "data-00001-of-00003.arrow"
    whole, random, refused = file.read_bytes(), np.random.default_rng(0), 0
    offsets = whole.index(SOME[4].data) - 200  # where the places of the images stand
    for number in range(60):
        damaged = bytearray(whole)
        at = random.integers(len(whole)) if number % 2 else offsets + random.integers(200)
        damaged[at] ^= 1 << random.integers(8)
        file.write_bytes(damaged)
        try:
            contents(open_store(str(saved)))
        except UserError as error:
            assert str(saved) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused


def test_a_data_set_saved_anew_is_noticed_by_a_process_that_opens_it_later(saved):
    copy = pickle.dumps(open_store(str(saved)))
    for file in saved.iterdir():
        file.unlink()
    write_saved(saved, SOME[:9], shards=3)
    with pytest.raises(UserError, match="has changed since it was opened: start again"):
        pickle.loads(copy)


def test_without_datasets_one_line_says_what_to_install(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "fetched by datasets, which is not there: install it by `pip install datasets`" in refusal("hf://a/b")
    assert len(open_store(str(saved))) == 11  # which needs pyarrow alone
