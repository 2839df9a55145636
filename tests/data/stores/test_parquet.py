"""Images in Parquet files, as pyarrow and as Hugging Face's library write them."""

import concurrent.futures
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import sys

import numpy as np
import pytest

from flowprior.data.stores import footers, parquet
from flowprior.data.stores.base import StoreOptions
from flowprior.data.stores.files import FolderStore
from flowprior.data.stores.recognise import open_store
from flowprior.errors import UserError
from image_sets import as_dataset, pictures, write_folder, write_parquet

pyarrow, files = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")

SOME = pictures(13, ("ant", "bee", "cat"))
DATA = [image.data for image in SOME]
WORDS = [image.label for image in SOME]
NUMBERS = [sorted(set(WORDS)).index(word) for word in WORDS]


def written(folder, per_group: int = 4, name: str = "a.parquet", metadata: dict | None = None, **columns):
    """A file of the columns that are given; its path."""
    table = pyarrow.table(columns)
    files.write_table(table.replace_schema_metadata(metadata), folder / name, row_group_size=per_group)
    return folder / name


def contents(store) -> list[tuple[bytes, str]]:
    return [(store.read(index), store.class_names[store.labels[index]]) for index in range(len(store))]


def refusal(path, image: str = "", label: str = "") -> str:
    with pytest.raises(UserError) as raised:
        contents(open_store(str(path), StoreOptions(image, label)))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def by_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = as_dataset(SOME)
    assert isinstance(made.features["image"], datasets.Image)
    made.to_parquet(str(tmp_path / "hub.parquet"), batch_size=5)
    return tmp_path / "hub.parquet"


def test_tables_hold_the_same_bits_as_the_folder(tmp_path, by_datasets, capsys):
    folder = FolderStore(write_folder(tmp_path / "folder", SOME))
    shards = write_parquet(tmp_path / "shards", SOME)
    kinds = {
        "folder of files": shards,
        "brace": shards / "part-{00000..00002}.parquet",
        "star": shards / "part-*.parquet",
        "one file": written(tmp_path, image=DATA, label=WORDS),
        "by datasets": by_datasets,
        "codes": written(tmp_path, name="c.parquet", image=DATA, label=pyarrow.array(WORDS).dictionary_encode()),
        "large": written(tmp_path, name="l.parquet", image=pyarrow.array(DATA, pyarrow.large_binary()), label=WORDS),
    }
    for kind, path in kinds.items():
        store = open_store(str(path))
        assert store.kind == "parquet" and contents(store) == contents(folder), kind
        assert store.class_names == folder.class_names and (store.labels == folder.labels).all()
        said = capsys.readouterr().err
        assert f"{path} has 13 images (column 'image') of 3 classes, whose labels come from column 'label'" in said


def test_row_groups_begin_where_starts_says_and_rows_are_named_by_file(tmp_path):
    store = open_store(str(write_parquet(tmp_path / "shards", SOME, per_file=6, per_group=4)))
    assert store.starts.tolist() == [0, 4, 6, 10, 12] and store.ends.tolist() == [4, 6, 10, 12, 13]
    assert store.name(0).endswith("part-00000.parquet: row 0") and store.name(11).endswith("part-00001.parquet: row 5")
    assert store.lengths(0, 13) is None
    facts = store.facts(0, 13)
    assert len(facts) == 5 and store.facts(0, 5) + store.facts(5, 13) == facts


@pytest.mark.parametrize("most", [1, 3, 7, 12, 13, 100])
def test_images_that_are_looked_at_are_in_order_and_no_more_than_asked_for(tmp_path, most):
    store = open_store(str(write_parquet(tmp_path / "shards", SOME)))
    found = store.spread(most).tolist()
    assert found == sorted(set(found)) and 0 <= found[0] and found[-1] < 13 and 1 <= len(found) <= most
    assert most < 13 or found == list(range(13))


def test_kept_row_groups_stay_within_their_bytes_and_are_read_once_within_them(tmp_path, monkeypatch):
    path, read = write_parquet(tmp_path / "shards", SOME), []
    file = parquet.ParquetStore._file
    monkeypatch.setattr(
        parquet.ParquetStore, "_file", lambda self, number: (read.append(number), file(self, number))[1]
    )
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(13), 4)).tolist()

    def groups_read(bytes_kept: int) -> int:
        monkeypatch.setattr(parquet, "KEPT_BYTES", bytes_kept)
        store = open_store(str(path))
        read.clear()
        for index in order:
            assert store.read(index) == DATA[index]
            assert store.kept_bytes == sum(column.nbytes for column in store.kept.values())
            assert store.kept_bytes <= bytes_kept or len(store.kept) == 1
        return len(read)

    assert groups_read(1 << 20) == 7
    assert groups_read(10_000) > 7 and open_store(str(path)).mixed == 2
    assert groups_read(1) > 30 and open_store(str(path)).mixed == 1


def test_no_more_than_a_few_files_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "FILES_OPEN", 2)
    store = open_store(str(write_parquet(tmp_path / "shards", SOME, per_file=2, per_group=1)))
    for index in np.random.default_rng(0).permutation(13).tolist():
        assert store.read(index) == DATA[index] and len(store.opened) <= 2


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_processes_and_threads_read_the_same(tmp_path, context, monkeypatch):
    monkeypatch.setattr(parquet, "KEPT_BYTES", 6000)
    store = open_store(str(write_parquet(tmp_path / "shards", SOME)))
    order = np.random.default_rng(0).integers(13, size=120).tolist()
    wanted = [DATA[index] for index in order]
    assert store.read(5) == DATA[5]  # what is open already must not be shared
    assert contents(pickle.loads(pickle.dumps(store))) == list(zip(DATA, WORDS))
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert list(threads.map(store.read, order)) == wanted
    processes = multiprocessing.get_context(context)
    with concurrent.futures.ProcessPoolExecutor(2, processes) as pool:
        assert list(pool.map(store.read, order, chunksize=30)) == wanted


def test_columns_of_other_names_are_named_and_labels_may_be_left_out(tmp_path, capsys):
    path = written(tmp_path, photo=DATA, thumbnail=DATA[::-1], what=WORDS, label=NUMBERS[::-1])
    assert contents(open_store(str(path), StoreOptions("photo", "what"))) == list(zip(DATA, WORDS))
    assert "(column" not in capsys.readouterr().err
    store = open_store(str(path), StoreOptions("photo", "none"))
    assert store.class_names == ["a"] and not store.labels.any()
    assert capsys.readouterr().err.count("says no labels: its 13 images are one class, 'a'") == 1
    assert open_store(str(path), StoreOptions("thumbnail")).read(0) == DATA[-1]


def test_numbers_are_classes_and_hugging_faces_names_are_theirs(tmp_path, by_datasets):
    assert open_store(str(written(tmp_path, image=DATA, label=NUMBERS))).class_names == ["0", "1", "2"]
    metadata = files.read_schema(by_datasets).metadata
    few = written(tmp_path, name="few.parquet", metadata=metadata, image=DATA[:2], label=NUMBERS[:2])
    assert open_store(str(few)).class_names == ["ant", "bee", "cat"]  # whether or not each has an image
    hidden = written(tmp_path, name="hidden.parquet", metadata=metadata, image=DATA[:2], label=[-1, -1])
    assert open_store(str(hidden)).class_names == ["hidden"]
    beyond = written(tmp_path, name="beyond.parquet", metadata=metadata, image=DATA[:2], label=[0, 3])
    assert "go up to 3, and it names 3 classes" in refusal(beyond)


def test_a_file_whose_numbers_stand_for_other_classes_is_refused(tmp_path):
    pytest.importorskip("datasets")
    for name, images in (("a", SOME), ("b", [image._replace(label=f"{image.label}x") for image in SOME])):
        as_dataset(images).to_parquet(str(tmp_path / f"{name}.parquet"))
    assert "other names in" in refusal(tmp_path) and "b.parquet than in a.parquet" in refusal(tmp_path)


STRUCTS = [{"bytes": data, "path": None} for data in DATA[:3]]
REFUSED = {
    "no rows": ({"image": pyarrow.array([], pyarrow.binary())}, "holds no rows"),
    "no images": ({"label": NUMBERS, "path": WORDS}, r"none of the columns of .* holds images in bytes \(label \(int64\), path"),
    "two image columns": ({"left": DATA, "right": DATA}, "columns left, right, each .* data.image_column=left, say"),
    "two label columns": ({"image": DATA, "label": WORDS, "class": WORDS}, "columns label, class, .* data.label_column=label"),
    "labels of another type": ({"image": DATA, "label": [0.5] * 13}, "'label' .* holds double, .* data.label_column=none"),
    "a missing image": ({"image": [*DATA[:6], None]}, "the image .*a.parquet: row 6 is missing: its cell is empty"),
    "a missing struct": ({"image": [*STRUCTS, None]}, "the image .*a.parquet: row 3 is missing"),
    "a path alone": ({"image": [*STRUCTS, {"bytes": None, "path": "x.png"}]}, "a.parquet: row 3 is not in the table, .* x.png"),
    "a missing label": ({"image": DATA, "label": [*WORDS[:12], None]}, "of 13 images .* 1 has no label .*first .*a.parquet: row 12: add"),
    "captions": ({"image": DATA * 10, "label": [str(n) + "x" for n in range(130)]}, "are captions and no classes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_cannot_be_used_is_refused_with_its_row_or_column(case, tmp_path):
    columns, said = REFUSED[case]
    assert re.search(said, refusal(written(tmp_path, **columns)))


def test_what_is_asked_for_and_is_not_there_is_refused(tmp_path):
    path = written(tmp_path, image=DATA, label=WORDS)
    assert "no column 'photo' (data.image_column) but image, label" in refusal(path, image="photo")
    assert "no column 'fine' (data.label_column) but image, label" in refusal(path, label="fine")
    assert "'label' of" in refusal(path, image="label") and "no images in bytes" in refusal(path, image="label")


def test_missing_rows_are_named_before_an_image_is_read(tmp_path):
    path = written(tmp_path, image=[*DATA[:7], None, *DATA[7:]], label=[*WORDS, "cat"])
    with pytest.raises(UserError, match="a.parquet: row 7 is missing"):
        open_store(str(path))


def test_missing_rows_are_left_out_where_that_is_asked_for(tmp_path, capsys):
    path = written(tmp_path, image=[*DATA[:7], None, *DATA[7:]], label=[*WORDS[:7], "bee", *WORDS[7:]])
    store = open_store(str(path), StoreOptions(skip_bad=True))
    assert [store.read(index) for index in range(len(store))] == DATA
    assert "leaves out 1 image of 14" in capsys.readouterr().err


def test_files_that_differ_are_refused(tmp_path):
    written(tmp_path, image=DATA, label=WORDS)
    written(tmp_path, name="b.parquet", image=DATA, label=NUMBERS)
    assert "b.parquet holds int64, and that of a.parquet string" in refusal(tmp_path)
    written(tmp_path, name="b.parquet", image=DATA)
    assert "b.parquet has no column 'label', which a.parquet has" in refusal(tmp_path)


def test_row_groups_too_large_to_be_read_for_one_image_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 5000)
    assert "row group 0 of" in refusal(written(tmp_path, per_group=13, image=DATA))
    assert len(open_store(str(written(tmp_path, per_group=2, image=DATA)))) == 13


def test_damage_names_the_file(tmp_path):
    whole = written(tmp_path, image=DATA, label=WORDS).read_bytes()
    file = tmp_path / "bad.parquet"
    for damaged in (b"", b"no table", whole[:-20], whole[: len(whole) // 2], b"x" * 8 + whole[8:]):
        file.write_bytes(damaged)
        assert str(file) in refusal(file)
    (tmp_path / "bad.parquet").unlink()
    store = open_store(str(tmp_path / "a.parquet"))
    (tmp_path / "a.parquet").unlink()
    with pytest.raises(UserError, match="a.parquet, row group 1, cannot be read|a.parquet cannot be read"):
        store.read(5)


def test_bytes_that_are_hit_are_never_more_than_a_mistake_that_names_the_file(tmp_path):
    table = pyarrow.table({"image": DATA, "label": WORDS})
    files.write_table(table, tmp_path / "a.parquet", row_group_size=4, write_page_checksum=True)
    whole, random, refused = (tmp_path / "a.parquet").read_bytes(), np.random.default_rng(0), 0
    for _ in range(40):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        (tmp_path / "a.parquet").write_bytes(damaged)
        try:
            found = contents(open_store(str(tmp_path / "a.parquet")))
        except UserError as error:
            assert "a.parquet" in str(error) and "\n" not in str(error)
            refused += 1
        else:
            assert found == list(zip(DATA, WORDS))  # the pages' checksums tell
    assert refused >= 10


@pytest.mark.parametrize(
    "ends, told",
    [
        (signal.SIGALRM, "the footer of the Parquet file {} is damaged"),
        (signal.SIGKILL, "the process that looks at the footer of the Parquet file {} was killed"),
    ],
)
def test_a_footer_that_ends_the_process_which_reads_it_is_one_line(tmp_path, monkeypatch, ends, told):
    for name in ("a.parquet", "b.parquet"):
        written(tmp_path, name=name, image=DATA)
    look = footers._look

    def end(file, image):
        return os.kill(os.getpid(), ends) if file.name == "b.parquet" else look(file, image)

    monkeypatch.setattr(footers, "_look", end)
    assert refusal(tmp_path).startswith(told.format(tmp_path / "b.parquet"))


def test_a_file_written_anew_while_it_is_read_is_noticed(tmp_path):
    store = open_store(str(written(tmp_path, image=DATA, label=WORDS)))
    written(tmp_path, per_group=5, image=DATA, label=WORDS)
    with pytest.raises(UserError, match="has changed since it was opened: start again"):
        store.read(0)


def test_splits_and_kinds_are_not_mixed(tmp_path):
    for split in ("train", "test"):
        written(tmp_path, name=f"{split}-00000-of-00001.parquet", image=DATA, label=WORDS)
    assert "holds files of test and train: write DATA=" in refusal(tmp_path)
    assert len(open_store(str(tmp_path / "train-*.parquet"))) == 13
    above = tmp_path / "above"
    shutil.copytree(tmp_path, above / "data", ignore=shutil.ignore_patterns("above"))
    assert "lie in data below it" in refusal(above)


def test_without_pyarrow_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = written(tmp_path, image=DATA)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "read by pyarrow, which is not there: install it by `pip install pyarrow`" in refusal(path)
