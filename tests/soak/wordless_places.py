"""Tar and zip files and lists of row 18: what lies in them beside images, what says the labels, and what is replaced in them."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flowprior.data.images import ImageConfig, open_images
from flowprior.data.order import SampleKey
from image_sets import encoded, pictures, write_tar
from soak.wordless_cases import Case

Members = list[tuple[str, bytes]]
A, B, C = (encoded(number, (16, 16)) for number in range(3))
FOLDERS: Members = [("x/0.png", A), ("x/1.png", B), ("y/2.png", C)]
LABELLED: Members = [("0.png", A), ("0.cls", b"0"), ("1.png", B), ("1.cls", b"1")]
CLASSES = (["x", "y"], [0, 0, 1])


def opened(file: Path, **options: Any):
    return open_images(ImageConfig("files", str(file), 16, **options))


def classes_and_labels(file: Path, **options: Any) -> tuple[list[str], list[int]]:
    images = opened(file, **options)
    images.batch([SampleKey(index, -1) for index in range(len(images))])
    return images.class_names, images.labels.tolist()


def archive(folder: Path, kind: str, members: Members) -> Path:
    if kind == "tar":
        return write_tar(folder / "set.tar", members)
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in members:
            made.writestr(name, data)
    return folder / "set.zip"


def in_archives() -> Iterator[Case]:
    """Members that are no images, and what may be their labels."""

    def of(kind: str, members: Members, **options: Any) -> Callable[[Path], Any]:
        return lambda folder: classes_and_labels(archive(folder, kind, members), **options)

    folders = ("has 3 images of 2 classes, whose labels come from its folders",)
    for kind in ("tar", "zip"):

        def case(
            label: str, members: Members, kind: str = kind, options: dict[str, Any] | None = None, **outcome: Any
        ) -> Case:
            return Case(f"{kind}: {label}", of(kind, members, **(options or {})), **outcome)

        yield case("class folders", FOLDERS, used=CLASSES, said=folders)
        yield case(
            "class folders in a folder", [(f"all/{name}", data) for name, data in FOLDERS], used=CLASSES, said=folders
        )
        for name in ("x/._0.png", "__MACOSX/x/._0.png", ".hidden/3.png", "y/Thumbs.db", "./x/.DS_Store"):
            yield case(f"the system's {name}", [*FOLDERS, (name, b"x")], used=CLASSES, said=folders)
        yield case("labels beside", LABELLED, used=(["0", "1"], [0, 1]))
        yield case("labels beside, apart", LABELLED[::2] + LABELLED[1::2], used=(["0", "1"], [0, 1]))
        yield case(
            "something else beside",
            [*LABELLED, ("0.txt", b"x"), ("1.npy", b"x")],
            used=(["0", "1"], [0, 1]),
            said=("1 .npy, 1 .txt",),
        )
        yield case(
            "a class without images",
            [*LABELLED[:3], ("1.cls", b"3")],
            used=(list("0123"), [0, 3]),
            said=("2 of these classes",),
        )
        yield case("no labels", LABELLED[::2], used=(["set"], [0, 0]), said=("says no labels",))
        yield case("one label alone", LABELLED[:3], refused=("of 2 images", "1.png"))
        yield case("an image twice", [*LABELLED, ("0.jpg", A)], refused=("sample 0", "two images"))
        yield case("a label twice", [*LABELLED[:2], ("0.cls", b"1")], refused=("sample 0", "two labels"))
        yield case("a label below 0", [*LABELLED[:3], ("1.cls", b"-1")], refused=("-1", "of 2 images"))
        yield case("images beside class folders", [*FOLDERS, ("3.png", A)], refused=("beside the class folders x, y",))
        yield case("splits", [("train/x/0.png", A), ("val/x/0.png", B)], refused=("train and val",))
        yield case("no images", [("a.gif", b"x"), ("b.heic", b"x")], refused=("1 .gif", "1 .heic"))
        yield case(
            "an image that is none", [("0.png", A), ("1.png", b"<html>")], refused=(f"set.{kind}: 1.png", "skip_bad")
        )
        yield case(
            "a JSON without a label",
            [("0.png", A), ("0.json", b'{"label": null}')],
            used=(["set"], [0]),
            said=("says no labels",),
        )
        yield case(
            "two fields that may be labels",
            [("0.png", A), ("0.json", b'{"class": 1, "label": 2}')],
            refused=("label, class", "label_column"),
        )
    yield Case("tar: a link", _link, refused=("set.tar: 0.png", "link"))
    yield Case("tar: compressed", _compressed, refused=("set.tar", "gzip"))


def _link(folder: Path) -> object:
    with tarfile.open(folder / "set.tar", "w") as made:
        entry = tarfile.TarInfo("0.png")
        entry.type, entry.linkname = tarfile.LNKTYPE, "1.png"
        made.addfile(entry)
    return opened(folder / "set.tar")


def _compressed(folder: Path) -> object:
    with tarfile.open(folder / "set.tar", "w:gz") as made:
        made.addfile(tarfile.TarInfo("0.png"))
    return opened(folder / "set.tar")


def in_lists() -> Iterator[Case]:
    """Lists whose rows and columns are not as they should be."""

    def of(text: str, name: str = "list.csv", **options: Any) -> Callable[[Path], Any]:
        def act(folder: Path) -> Any:
            for number, data in enumerate((A, B, C)):
                (folder / f"{number}.png").write_bytes(data)
            (folder / name).write_text(text)
            return classes_and_labels(folder / name, **options)

        return act

    used = (["a", "b"], [0, 1, 0])
    yield Case("a list", of("path,label\n0.png,a\n1.png,b\n2.png,a\n"), used=used)
    yield Case("a list without names of columns", of("0.png,a\n1.png,b\n2.png,a\n"), used=used)
    yield Case(
        "a list with more columns", of("id,label,file,split\n7,a,0.png,x\n7,b,1.png,x\n7,a,2.png,x\n"), used=used
    )
    yield Case(
        "an image that is named twice", of("0.png,a\n1.png,b\n0.png,a\n"), used=used, said=("1 images more than once",)
    )
    yield Case("paths alone", of("0.png\n1.png\n"), used=(["list"], [0, 0]), said=("says no labels",))
    yield Case("a label that is missing", of("path,label\n0.png,a\n1.png,\n"), refused=("of 2 images", "row 3"))
    yield Case("an image that is missing", of("path,label\n9.png,a\n"), refused=("9.png",))
    yield Case(
        "two columns of labels", of("path,label,class\n0.png,a,b\n"), refused=("label, class", "data.label_column")
    )
    yield Case("no column of paths", of("a,b\nx,y\n"), refused=("a, b", "data.image_column"))
    yield Case(
        "a column that is not there", of("path,label\n0.png,a\n", label_column="fine"), refused=("fine", "path, label")
    )
    yield Case("JSON that is none", of('{"path": "0.png"}\n{\n', "list.jsonl"), refused=("line 2",))


def replaced_in_archives() -> Iterator[Case]:
    """Whether a tar or zip file counts as other images when something in it is replaced."""
    images = pictures(6, size=(16, 16), extension="bmp")
    other = encoded(77, (16, 16), "bmp")

    def members(*changed: tuple[int, str, bytes], left_out: int = -1) -> Members:
        """Image and label of each, some of them (number, key, picture) changed."""
        kept = [(image.key, image.data) for image in images]
        for number, key, data in changed:
            kept[number] = key, data
        return [
            part
            for number, (key, data) in enumerate(kept)
            if number != left_out
            for part in ((f"{key}.bmp", data), (f"{key}.cls", b"%d" % (number % 2)))
        ]

    def same(kind: str, change: Callable[[Path], Path | None]) -> Callable[[Path], bool]:
        def act(folder: Path) -> bool:
            before = opened(archive(folder, kind, members())).fingerprint()
            return opened(change(folder) or folder / f"set.{kind}").fingerprint() == before

        return act

    (first, data), (second, more) = ((image.key, image.data) for image in images[:2])
    contents: dict[str, tuple[Members, bool]] = {
        "packed once more": (members(), True),
        "one picture of the same length": (members((2, images[2].key, other)), False),
        "two pictures swapped": (members((0, first, more), (1, second, data)), False),
        "a picture renamed": (members((0, "renamed", data)), False),
        "a label changed": ([*members()[:1], (f"{first}.cls", b"1"), *members()[2:]], False),
        "a picture more": ([*members(), ("more.bmp", other), ("more.cls", b"0")], False),
        "a picture less": (members(left_out=3), False),
    }
    for kind in ("tar", "zip"):
        yield Case(f"{kind}, replaced: nothing", same(kind, lambda folder: None), used=True)
        yield Case(
            f"{kind}: other times", same(kind, lambda folder, k=kind: os.utime(folder / f"set.{k}", (1, 1))), used=True
        )
        renamed = lambda folder, k=kind: (folder / f"set.{k}").rename(folder / f"other.{k}")  # noqa: E731
        yield Case(f"{kind}: another name", same(kind, renamed), used=True)
        for label, (now, equal) in contents.items():
            pack = lambda folder, k=kind, m=now: archive(folder, k, m) and None  # noqa: E731
            yield Case(f"{kind}, replaced: {label}", same(kind, pack), used=equal)
