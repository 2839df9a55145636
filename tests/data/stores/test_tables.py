"""Parquet files and Arrow tables: which columns count, what says the classes, and what is read at once."""

import sys

import numpy as np
import pytest

from flowprior.data.stores import parquet as parquet_module
from flowprior.data.stores.base import StoreOptions
from flowprior.data.stores.recognise import open_store
from flowprior.errors import UserError
from image_sets import as_dataset, encoded, pictures, write_hub, write_parquet, write_saved

pyarrow = pytest.importorskip("pyarrow")
datasets = pytest.importorskip("datasets")
pq = pytest.importorskip("pyarrow.parquet")
SOME = pictures(10, ("ant", "bee", "cat"))
IMAGES = [image.data for image in SOME]
WANTED = [(image.data, image.label) for image in SOME]


def opened(place, image: str = "", label: str = ""):
    return open_store(str(place), StoreOptions(image, label))


def contents(store) -> list[tuple[bytes, str]]:
    return [(store.read(index), store.class_names[store.labels[index]]) for index in range(len(store))]


def written(folder, rows: int = 3, **columns):
    """One file with these columns."""
    folder.mkdir(exist_ok=True)
    pq.write_table(pyarrow.table(columns), folder / "a.parquet", row_group_size=rows)
    return folder


def test_parquet_files_follow_each_other_in_the_order_of_their_names(tmp_path, capsys):
    store = opened(write_parquet(tmp_path / "set", SOME, per_file=4, per_group=3))
    assert contents(store) == WANTED and store.kind == "parquet" and store.starts.tolist() == [0, 3, 4, 7, 8]
    assert store.name(5) == f"{tmp_path}/set/part-00001.parquet: row 1 of row group 0"
    said = capsys.readouterr().err
    assert "are its column 'image'" in said and "are its column 'label'" in said
    assert contents(opened(f"{tmp_path}/set/part-{{00001..00001}}.parquet")) == WANTED[4:8]
    assert contents(opened(f"{tmp_path}/set/part-00000.parquet")) == WANTED[:4]


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_the_classes_of_hugging_faces_features_keep_their_names(kind, tmp_path):
    data = as_dataset(SOME, label="fine").cast_column("fine", datasets.ClassLabel(names=["ant", "bee", "cat", "dog"]))
    (tmp_path / "set").mkdir()
    data.to_parquet(str(tmp_path / "set" / "a.parquet")) if kind == "parquet" else data.save_to_disk(
        str(tmp_path / "set")
    )
    store = opened(tmp_path / "set")
    assert contents(store) == WANTED and store.class_names == ["ant", "bee", "cat", "dog"]


NUMBERS = [number % 3 for number in range(10)]
LABELS = {
    "int8": (pyarrow.array(NUMBERS, pyarrow.int8()), ["0", "1", "2"], NUMBERS),
    "uint64": (pyarrow.array(NUMBERS, pyarrow.uint64()), ["0", "1", "2"], NUMBERS),
    "words": (pyarrow.array([f"w{n}" for n in NUMBERS]), ["w0", "w1", "w2"], NUMBERS),
    "large words": (pyarrow.array([f"w{n}" for n in NUMBERS], pyarrow.large_string()), ["w0", "w1", "w2"], NUMBERS),
    "coded words": (pyarrow.DictionaryArray.from_arrays(NUMBERS, ["b", "a", "c", "never"]), ["a", "b", "c"], [[1, 0, 2][n] for n in NUMBERS]),
    "none of them": (pyarrow.array([-1] * 10), ["set"], [0] * 10),
}  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
def test_labels_of_every_type_become_classes(name, tmp_path):
    column, names, labels = LABELS[name]
    store = opened(written(tmp_path / "set", image=IMAGES, label=column))
    assert store.class_names == names and np.asarray(store.labels).tolist() == labels


@pytest.mark.parametrize("kind", [pyarrow.binary(), pyarrow.large_binary()])
def test_images_are_bytes_or_structs_of_bytes_or_files_that_are_named(kind, tmp_path):
    assert opened(written(tmp_path / "plain", image=pyarrow.array(IMAGES, kind))).read(7) == IMAGES[7]
    (tmp_path / "beside.png").write_bytes(encoded(99))
    structs = [{"bytes": data, "path": "x.png"} for data in IMAGES[:9]] + [{"bytes": None, "path": "../beside.png"}]
    shape = pyarrow.struct({"bytes": kind, "path": pyarrow.string()})
    store = opened(written(tmp_path / "structs", image=pyarrow.array(structs, shape)))
    assert [store.read(index) for index in range(10)] == [*IMAGES[:9], encoded(99)]
    (tmp_path / "beside.png").unlink()
    with pytest.raises(UserError, match=r"a.parquet: row 0 of row group 3 lies in ../beside.png, which cannot be read"):
        store.read(9)


def test_columns_of_other_names_are_named(tmp_path):
    place = written(tmp_path / "set", a=IMAGES, b=IMAGES[::-1], c=NUMBERS, label=["x"] * 10)
    store = opened(place, image="b", label="c")
    assert store.read(0) == IMAGES[9] and np.asarray(store.labels).tolist() == NUMBERS
    assert opened(place, image="a", label="none").class_names == ["set"]


REFUSED = {
    "two columns of images": ({"a": IMAGES, "b": IMAGES}, ("", ""), "the columns a, b, each of which may hold the images: write data.image_column=a"),
    "two columns of labels": ({"a": IMAGES, "label": NUMBERS, "Class": NUMBERS}, ("", ""), "label, Class, each .*: write data.label_column=label"),
    "no images": ({"path": ["x"] * 10, "label": NUMBERS}, ("", ""), r"no column of images in bytes but path \(string\), label \(int64\)"),
    "no such image column": ({"a": IMAGES}, ("b", ""), r"has no column 'b' \(data.image_column\) but a"),
    "no such label column": ({"a": IMAGES}, ("", "fine"), r"has no column 'fine' \(data.label_column\) but a"),
    "words as images": ({"a": ["x"] * 10}, ("a", ""), "the column 'a' of .* holds string, and no images"),
    "fractions as labels": ({"a": IMAGES, "b": [0.5] * 10}, ("", "b"), "the column 'b' of .* holds double, and no numbers or words"),
    "a label that is missing": ({"a": IMAGES, "label": [*NUMBERS[:7], None, 1, 2]}, ("", ""), r"1 of 10 images .* no label .*, first row 7"),
    "a label below 0": ({"a": IMAGES, "label": [*NUMBERS[:9], -1]}, ("", ""), "are -1, which is none, for 1 of 10 images"),
    "no rows": ({"a": pyarrow.array([], pyarrow.binary())}, ("", ""), "holds no rows"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_table_that_is_no_labelled_set_is_refused_in_one_line(case, tmp_path):
    columns, options, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as refusal:
        opened(written(tmp_path / "set", **columns), *options)
    assert str(tmp_path / "set") in str(refusal.value) and "\n" not in str(refusal.value)


def test_an_empty_cell_is_named(tmp_path):
    store = opened(written(tmp_path / "set", image=[*IMAGES[:4], None, *IMAGES[5:]]))
    with pytest.raises(UserError, match="row 1 of row group 1 is missing: its cell is empty"):
        store.read(4)


def test_labels_beyond_the_named_classes_are_refused(tmp_path):
    data = as_dataset(SOME)
    table = data.data.table.set_column(1, "label", [pyarrow.array([3] * 10)]).replace_schema_metadata(
        data.data.table.schema.metadata
    )
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "a.parquet")
    with pytest.raises(UserError, match="go up to 3, and it names 3 classes"):
        opened(tmp_path / "set")


def test_files_whose_columns_differ_are_refused(tmp_path):
    write_parquet(tmp_path / "set", SOME, per_file=5)
    pq.write_table(pyarrow.table({"image": IMAGES, "label": NUMBERS}), tmp_path / "set" / "part-00001.parquet")
    with pytest.raises(
        UserError, match="part-00001.parquet has int64 in the column 'label', and part-00000.parquet string"
    ):
        opened(tmp_path / "set")


def test_a_damaged_file_is_refused_and_a_damaged_row_group_named(tmp_path):
    file = write_parquet(tmp_path / "set", SOME, per_file=10) / "part-00000.parquet"
    whole = file.read_bytes()
    for data in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], b"x" * 1000):
        file.write_bytes(data)
        with pytest.raises(UserError, match=f"the Parquet file {file} cannot be read"):
            opened(tmp_path / "set")
    place = (
        pq.ParquetFile(file := write_parquet(tmp_path / "other", SOME, per_file=10) / "part-00000.parquet")
        .metadata.row_group(2)
        .column(0)
    )
    data = bytearray(whole)
    data[place.dictionary_page_offset or place.data_page_offset :][:4] = b"\xff\xff\xff\xff"
    at = place.dictionary_page_offset or place.data_page_offset
    data[at : at + 20] = b"\xff" * 20
    file.write_bytes(data)
    store = opened(tmp_path / "other")
    assert store.read(3) == IMAGES[3]
    with pytest.raises(UserError, match=f"{file}, row group 2, cannot be read"):
        store.read(4)


def test_row_groups_too_large_to_read_for_one_image_are_refused(tmp_path, monkeypatch):
    write_parquet(tmp_path / "set", SOME, per_group=5)
    monkeypatch.setattr(parquet_module, "LARGEST_GROUP", 4000)
    with pytest.raises(
        UserError, match="row group 0 of .* all of which is read for any of them: .* row_group_size=100"
    ):
        opened(tmp_path / "set")


def test_a_row_group_is_read_once_while_it_is_among_the_last_few(tmp_path, monkeypatch):
    store = opened(write_parquet(tmp_path / "set", pictures(40), per_file=20, per_group=4))
    reads, read = [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **o: reads.append(group) or read(self, group, **o)
    )
    assert len({store.read(index) for index in range(40)}) == 40 and reads == [0, 1, 2, 3, 4] * 2
    for index in (39, 35, 31, 27, 38, 34, 30, 26):  # of the last four
        store.read(index)
    assert len(reads) == 10


@pytest.mark.parametrize("groups, most", [(1, 10), (4, 10), (40, 10), (100, 300), (100, 5000)])
def test_images_that_are_looked_at_lie_in_few_row_groups(tmp_path, monkeypatch, groups, most):
    store = opened(written(tmp_path / "set", rows=7, image=[b"x"] * (7 * groups - 3)))
    monkeypatch.setattr(parquet_module, "GROUPS_LOOKED_AT", 8)
    chosen = store.spread(most)
    assert 1 <= len(chosen) <= most and chosen[0] == 0 and (np.diff(chosen) > 0).all() and chosen[-1] < len(store)
    assert len(set((chosen // 7).tolist())) <= max(8, -(-most // 7) + 1) and len(chosen) >= min(len(store), most) * 0.5
    assert most < len(store) or len(chosen) == len(store)


def test_a_saved_data_set_of_several_splits_names_them(tmp_path):
    datasets.DatasetDict({"train": as_dataset(SOME), "test": as_dataset(SOME[:4])}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(UserError, match=f"holds the splits train, test: write DATA={tmp_path}/set/train"):
        opened(tmp_path / "set")
    assert contents(opened(tmp_path / "set" / "test")) == WANTED[:4]


def test_a_saved_data_set_whose_files_are_gone_or_cut_is_refused(tmp_path):
    place = write_saved(tmp_path / "set", SOME)
    assert contents(opened(place)) == WANTED and contents(opened(f"{place}/*.arrow")) == WANTED
    file = place / "data-00001-of-00002.arrow"
    whole = file.read_bytes()
    for data in (b"", whole[:100], whole[: len(whole) // 2]):
        file.write_bytes(data)
        with pytest.raises(UserError, match=f"the Arrow file {file} cannot be read"):
            opened(place)
    file.unlink()
    with pytest.raises(UserError, match=f"the Arrow file {file} cannot be read"):
        opened(place)


def test_a_saved_choice_of_rows_is_that_choice(tmp_path):
    as_dataset(SOME).select([7, 1, 3]).save_to_disk(str(tmp_path / "set"))
    assert contents(opened(tmp_path / "set")) == [WANTED[7], WANTED[1], WANTED[3]]


def test_a_data_set_of_the_hub_is_read_by_its_name_and_split(tmp_path, monkeypatch):
    name = write_hub(tmp_path / "hub", SOME)
    assert contents(opened(name)) == WANTED and contents(opened(name.removesuffix(":train"))) == WANTED
    assert contents(opened(f"{name}[2:5]")) == WANTED[2:5]
    write_parquet(tmp_path / "hub" / "more", SOME)
    (tmp_path / "hub" / "more" / "part-00000.parquet").rename(tmp_path / "hub" / "data" / "test-00000-of-00001.parquet")
    (tmp_path / "hub" / "more" / "part-00001.parquet").unlink()
    with pytest.raises(UserError, match="has the splits train, test: write hf://.*hub:train, say"):
        opened(name.removesuffix(":train"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="hf:///none/such:train cannot be had") as refusal:
        opened("hf:///none/such:train")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["pyarrow", "datasets"])
def test_a_library_that_is_missing_is_named_with_what_installs_it(name, tmp_path, monkeypatch):
    place = write_parquet(tmp_path / "set", SOME) if name == "pyarrow" else "hf://some/name"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"{name}, which is not there: install it by `pip install {name}`"):
        opened(place)


def test_folders_below_which_shards_lie_are_named(tmp_path):
    write_parquet(tmp_path / "set" / "data", SOME)
    with pytest.raises(UserError, match=f"lie in data below it: write DATA={tmp_path}/set/data"):
        opened(tmp_path / "set")
