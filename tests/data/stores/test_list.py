"""Lists of paths and labels, in CSV and in JSON lines."""

import json

import numpy as np
import pytest

from flowprior.data.stores.base import StoreOptions
from flowprior.data.stores.recognise import open_store
from flowprior.errors import UserError
from image_sets import pictures, write_folder

SOME = pictures(6)
ROWS = {
    ".csv": lambda image: f"{image.file},{image.label}\n",
    ".tsv": lambda image: f"{image.file}\t{image.label}\n",
    ".jsonl": lambda image: json.dumps({"file_name": image.file, "label": image.label, "width": 18}) + "\n",
}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path, SOME)


def opened(folder, text: str, suffix: str = ".csv", image: str = "", label: str = ""):
    file = folder / f"list{suffix}"
    file.write_text(text)
    return open_store(str(file), StoreOptions(image, label))


def contents(store) -> list[tuple[bytes, str]]:
    return [(store.read(index), store.class_names[store.labels[index]]) for index in range(len(store))]


@pytest.mark.parametrize("suffix", ROWS)
@pytest.mark.parametrize("order", [1, -1])
def test_a_list_is_its_images_in_its_order(folder, suffix, order, capsys):
    store = opened(folder, "".join(map(ROWS[suffix], SOME[::order])), suffix)
    assert contents(store) == [(image.data, image.label) for image in SOME[::order]]
    paths, column = ("'file_name'", "'label'") if suffix == ".jsonl" else ("1", "2")
    said = f"{store.where} has 6 images (column {paths}) of 2 classes, whose labels come from column {column}\n"
    assert said in capsys.readouterr().err
    assert store.kind == "list" and store.name(0) == str(folder / SOME[::order][0].file)
    assert store.lengths(1, 3) == [len(image.data) for image in SOME[::order][1:3]]


@pytest.mark.parametrize(
    "header, cells", [("path,label", "{i.file},{i.label}"), ("id,Class,FILENAME",
     '7,{i.label},"{i.file}"'), ("label,w,file_name,h", "{i.label},1,{i.file},2")]
)  # fmt: skip
def test_columns_are_found_by_their_usual_names(folder, header, cells, capsys):
    text = "\ufeff" + "\r\n".join([header, *(cells.format(i=image) for image in SOME), ""])
    assert contents(opened(folder, text)) == [(image.data, image.label) for image in SOME]
    name = "Class" if "Class" in header else "label"
    paths = next(column for column in header.split(",") if column.lower() in ("path", "filename", "file_name"))
    said = f"6 images (column '{paths}') of 2 classes, whose labels come from column '{name}'\n"
    assert said in capsys.readouterr().err


def test_columns_of_other_names_are_named(folder):
    text = "what,where,other,label\n" + "".join(f"{i.label},{i.file},5,6\n" for i in SOME)
    store = opened(folder, text, image="where", label="what")
    assert contents(store) == [(image.data, image.label) for image in SOME]
    assert opened(folder, text, image="where", label="other").class_names[5] == "5"
    assert opened(folder, text, image="where", label="none").class_names == ["list"]


def test_absolute_paths_are_taken_as_they_are(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    store = opened(elsewhere, "".join(f"{folder / image.file},{image.label}\n" for image in SOME))
    assert contents(store) == [(image.data, image.label) for image in SOME]


def test_numbers_are_classes_and_a_list_of_paths_alone_is_one_class(folder, capsys):
    store = opened(folder, "".join(f"{image.file},{number}\n" for number, image in enumerate(SOME)))
    assert np.asarray(store.labels).tolist() == list(range(6))
    assert (
        capsys.readouterr().err
        == f"note: {store.where} has 6 images (column 1) of 6 classes, whose labels come from column 2\n"
    )
    assert opened(folder, "".join(f"{image.file}\n" for image in SOME)).class_names == ["list"]
    assert capsys.readouterr().err.count("says no labels: its 6 images (column 1) are one class, 'list'") == 1


def test_labels_that_nearly_every_image_has_to_itself_are_said_to_be_captions_perhaps(folder, capsys):
    for texts, said in ((12, True), (6, False), (3, False)):
        opened(folder, "".join(f"{SOME[n % 6].file},caption {n % texts}\n" for n in range(12)))
        expected = f"there are {texts} labels for 12 images: where these are captions, data.label_column=none"
        assert (expected in capsys.readouterr().err) == said, texts


def test_a_line_is_said_once_in_a_process(folder, capsys):
    text = "".join(f"{image.file},{image.label}\n" for image in SOME)
    opened(folder, text), opened(folder, text)
    assert capsys.readouterr().err.count("has 6 images") == 1


def test_images_that_are_named_twice_are_counted(folder, capsys):
    store = opened(folder, "".join(f"{image.file},{image.label}\n" for image in [*SOME, *SOME[:2]]))
    assert len(store) == 8 and "names 2 images more than once" in capsys.readouterr().err


FILE = SOME[0].file
REFUSED = {
    "nothing": (".csv", "", "names no images"),
    "a header alone": (".csv", "path,label\n", "names no images"),
    "no column of paths": (".csv", "a,b\nx,y\n", "no column of a usual name .* but a, b: data.image_column= names it"),
    "two columns of paths": (".csv", "path,file\nx,y\n", "the columns path, file, each of which .* data.image_column=path"),
    "two columns of labels": (".csv", f"path,label,class\n{FILE},1,2\n", "the columns label, class, each"),
    "three columns without names": (".csv", f"{FILE},1,2\n", "has 3 columns and no row of their names"),
    "labels that pandas wrote as floats": (".csv", f"path,label\n{FILE},0.0\n{FILE},10.0\n", "a decimal point, such as 0.0: write whole"),
    "a row without a label": (".csv", f"path,label\n{FILE}\n", "no path or no label in line 2"),
    "an empty label": (".csv", f"path,label\n{FILE},1\n{FILE},\n", "of 2 images .* 1 has no label .*, first row 3"),
    "no such image": (".csv", "path,label\nant/none.png,1\n", "there is no image .*ant/none.png, which .*list.csv names"),
    "a quote without end": (".csv", f'path,label\n"{FILE},1\n', "cannot be read"),
    "no UTF-8": (".csv", "path,label\n\udcff,1\n", "cannot be read"),
    "no JSON": (".jsonl", "{\n", "line 1 of the list .* is no JSON"),
    "a list in place of an object": (".jsonl", "[1]\n", "line 1 of the list .* is no JSON object"),
    "a path that is none": (".jsonl", f'{{"path": "{FILE}"}}\n{{"path": 3}}\n', "line 2 .* has no 'path' .*; its fields are path$"),
    "fields of other names": (".jsonl", f'{{"path": "{FILE}"}}\n{{"url": "x", "w": 3}}\n', "line 2 .* has no 'path' .*; its fields are url, w$"),
    "a label that is none": (".jsonl", f'{{"path": "{FILE}", "label": 1.5}}\n', "'label' in line 1 .* is no number and no word"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_list_that_cannot_be_read_is_refused_with_its_line(case, folder):
    suffix, text, said = REFUSED[case]
    file = folder / f"list{suffix}"
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=said) as refusal:
        open_store(str(file))
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_column_that_is_asked_for_and_missing_is_refused_with_those_there_are(folder):
    for suffix, text in ((".csv", f"path,label\n{FILE},1\n"), (".jsonl", f'{{"path": "{FILE}", "label": 1}}\n')):
        with pytest.raises(UserError, match=r"has no column 'fine' \(data.label_column\) but path, label"):
            opened(folder, text, suffix, label="fine")


def test_an_image_that_is_gone_later_is_named(folder):
    store = opened(folder, "".join(map(ROWS[".csv"], SOME)))
    (folder / SOME[3].file).unlink()
    for look in (lambda: store.read(3), lambda: store.lengths(0, 6)):
        with pytest.raises(UserError, match=SOME[3].file):
            look()
