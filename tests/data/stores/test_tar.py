"""Tar shards: what is a sample, what says its label, and what is refused."""

import io
import itertools
import json
import os
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.data.stores.base import ImageStore, StoreOptions
from flowprior.data.stores.recognise import open_store
from flowprior.data.stores.tar import TarArchive
from flowprior.errors import UserError
from image_sets import Picture, encoded, pictures, write_gnu_tar, write_shards, write_tar

SOME = pictures(8)


def opened(path, image: str = "", label: str = "") -> ImageStore:
    return open_store(str(path), StoreOptions(image, label))


def contents(store: ImageStore) -> list[tuple[bytes, str]]:
    return [(store.read(index), store.class_names[store.labels[index]]) for index in range(len(store))]


def as_pictures(images: list[Picture]) -> list[tuple[bytes, str]]:
    return [(image.data, image.label) for image in images]


@pytest.mark.parametrize("label", ["json", "txt"])
def test_shards_of_webdatasets_writer_hold_the_images_in_order_with_their_words(tmp_path, label, capsys):
    store = opened(write_shards(tmp_path / "shards", SOME, label=label))
    assert contents(store) == as_pictures(SOME) and store.class_names == ["ant", "bee"]
    assert store.starts.tolist() == [0, 3, 6] and store.kind == "tar" and len(store.shards) == 3
    source = "field 'label' of .json files" if label == "json" else ".txt files"
    assert f"{tmp_path}/shards has 8 images of 2 classes, whose labels come from {source}\n" in capsys.readouterr().err


def test_numbers_beside_the_images_are_their_classes(tmp_path, capsys):
    store = opened(write_shards(tmp_path / "shards", SOME))
    assert store.class_names == ["0", "1"] and np.asarray(store.labels).tolist() == [0] * 4 + [1] * 4
    assert store.name(4) == f"{tmp_path}/shards/set-000001.tar: {SOME[4].key}.png"
    assert (
        capsys.readouterr().err == f"note: {store.where} has 8 images of 2 classes, whose labels come from .cls files\n"
    )


def test_one_class_is_said_as_one(tmp_path, capsys):
    opened(write_tar(tmp_path / "a.tar", [A, ("a.cls", b"0")]))
    assert (
        capsys.readouterr().err == f"note: {tmp_path}/a.tar has 1 image of 1 class, whose labels come from .cls files\n"
    )


def test_a_class_without_images_is_counted_and_named(tmp_path, capsys):
    members = [
        (f"{n}.{kind}", data)
        for n, c in enumerate((0, 4, 4))
        for kind, data in (("png", encoded(n)), ("cls", b"%d\n" % c))
    ]
    store = opened(write_tar(tmp_path / "a.tar", members))
    assert store.class_names == list("01234") and np.asarray(store.labels).tolist() == [0, 4, 4]
    assert "3 of these classes have no image (1, 2, 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [[], ["--format=gnu"], ["--format=posix"], ["--format=ustar"], ["--format=v7"], ["--sort=name"]]
)
def test_class_folders_packed_by_gnu_tar_are_classes(tmp_path, options, capsys):
    file = write_gnu_tar(tmp_path / "set.tar", SOME, tmp_path / "folder", *options)
    store = opened(file)
    assert sorted(contents(store)) == sorted(as_pictures(SOME)) and store.class_names == ["ant", "bee"]
    assert f"{file} has 8 images of 2 classes, whose labels come from its folders" in capsys.readouterr().err


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("length", [90, 99, 100, 101, 155, 256, 300, 1000])
def test_long_names_and_names_beyond_ascii_are_read(tmp_path, format, length):
    name = "ä" * 10 + "/" + "x" * (length - 16)
    store = opened(write_tar(tmp_path / "a.tar", [(f"{name}.png", encoded(0)), (f"{name}.cls", b"7")], format))
    assert store.name(0) == f"{tmp_path}/a.tar: {name}.png" and store.class_names[store.labels[0]] == "7"


@settings(max_examples=40)
@given(st.permutations(range(12)), st.sampled_from(["cls", "txt", "json"]))
def test_members_of_a_sample_need_not_be_neighbours(tmp_path_factory, order, kind):
    folder = tmp_path_factory.mktemp("shuffled")
    word = {"cls": b"w%d", "txt": b"w%d", "json": b'{"class": "w%d"}'}[kind]
    members = [(f"d/{n}.png", encoded(n)) for n in range(6)] + [(f"d/{n}.{kind}", word % (n % 2)) for n in range(6)]
    store = opened(write_tar(folder / "a.tar", [members[place] for place in order]))
    wanted = [place for place in order if place < 6]
    assert contents(store) == [(encoded(n), f"w{n % 2}") for n in wanted]


def test_the_first_of_cls_json_and_txt_is_the_label_unless_another_is_named(tmp_path):
    members = [
        ("a.png", encoded(0)),
        ("a.txt", b"a bee"),
        ("a.json", b'{"label": 3, "kind": "x"}'),
        ("a.cls", b"2"),
        ("a.seg.png", b""),
    ]
    file = write_tar(tmp_path / "a.tar", members)
    found = {label: opened(file, label=label) for label in ("", "cls", "txt", "label", "kind", "none")}
    named = {label: store.class_names[store.labels[0]] for label, store in found.items()}
    assert named == {"": "2", "cls": "2", "txt": "a bee", "label": "3", "kind": "x", "none": "a"}
    assert len({store.index_files[0] for store in found.values()}) == 6


def test_images_under_an_extension_of_their_own_are_named_by_it(tmp_path, capsys):
    members = [
        ("a.in.png", encoded(0)),
        ("a.out.png", encoded(1)),
        ("a.cls", b"0"),
        ("b.in.png", encoded(2)),
        ("b.cls", b"1"),
    ]
    file = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match="holds no images .* 2 .in.png, 1 .out.png"):
        opened(file, label="cls")
    store = opened(file, image="in.png")
    assert [data for data, _ in contents(store)] == [encoded(0), encoded(2)]
    assert "are not read: 1 .out.png" in capsys.readouterr().err


def test_images_without_labels_are_one_class_and_it_is_said_once(tmp_path, capsys):
    store = opened(write_shards(tmp_path / "shards", SOME, label=""))
    assert store.class_names == ["shards"] and np.asarray(store.labels).tolist() == [0] * 8
    assert capsys.readouterr().err.count("says no labels: its 8 images are one class") == 1
    (tmp_path / "shards").rename(tmp_path / "moved")
    index = next((tmp_path / "moved").glob(".flowprior-*.index"))
    before = index.stat()
    opened(tmp_path / "moved")
    assert (
        capsys.readouterr().err.count(f"{tmp_path}/moved says no labels: its 8 images are one class") == 1
    )  # from the index
    assert index.stat().st_mtime_ns == before.st_mtime_ns and index.stat().st_ino == before.st_ino


def test_a_brace_pattern_is_its_shards_in_their_order(tmp_path):
    write_shards(tmp_path / "shards", SOME, label="txt")
    pattern = f"{tmp_path}/shards/set-{{000000..000002}}.tar"
    assert contents(opened(pattern)) == as_pictures(SOME)
    assert contents(opened(f"{tmp_path}/shards/set-{{000002,000000}}.tar")) == as_pictures(SOME[6:] + SOME[:3])
    assert contents(opened(f"{tmp_path}/shards/*.tar")) == as_pictures(SOME)
    (tmp_path / "shards" / "set-000001.tar").unlink()
    with pytest.raises(UserError, match=r"stands for 3 files, of which 1 is not there: \S*set-000001.tar"):
        opened(pattern)


def test_splits_side_by_side_are_no_shards_of_one_set(tmp_path):
    write_shards(tmp_path / "shards", SOME)
    for number, name in enumerate(("train-0.tar", "train-1.tar", "val-0.tar")):
        (tmp_path / "shards" / f"set-{number:06d}.tar").rename(tmp_path / "shards" / name)
    with pytest.raises(UserError, match=r"files of train and val: write DATA='\S*/\*train\*.tar'"):
        opened(tmp_path / "shards")
    assert len(opened(f"{tmp_path}/shards/train-*.tar")) == 6


A, B = ("a.png", encoded(0)), ("b.png", encoded(1))
REFUSED = {
    "a sample without its label": ([A, ("a.cls", b"1"), B], "of 2 images in .* 1 has no label .* first .*b.png"),
    "a label that is no text": ([A, ("a.cls", b"\xff\xfe")], "a.cls is no text"),
    "a long label": ([A, ("a.cls", b"1" * 5000)], "a.cls has 5000 bytes"),
    "a damaged JSON": ([A, ("a.json", b"{")], "a.json is no JSON"),
    "a JSON that is a list": ([A, ("a.json", b"[1]")], "a.json is no JSON object"),
    "a label that is a list": ([A, ("a.json", b'{"label": [1]}')], "'label' in .*a.json is no number and no word"),
    "two fields that may be the label": ([A, ("a.json", b'{"label": 1, "class": 2}')], "label, class, each .* data.label_column=label"),
    "two images of a sample": ([A, ("a.jpg", b""), ("a.cls", b"1")], "the sample a in .* has two images"),
    "two images of a sample, apart": ([A, ("a.cls", b"1"), B, ("b.cls", b"1"), A, ("a.txt", b"1")], "the sample a in .* has two images"),
    "two labels of a sample, apart": ([A, ("a.cls", b"1"), B, ("b.cls", b"1"), ("a.cls", b"1")], "the sample a in .* has two labels"),
    "a name of two lines": ([("a\nb.png", encoded(0)), ("a\nb.cls", b"\xff")], r"a.nb.cls is no text"),
    "two labels of a sample": ([("a.cls", b"1"), ("a.cls", b"1"), A], "the sample a in .* has two labels"),
    "an image that comes twice": ([A, B, A], "the sample a.png in .* has two images"),
    "numbers beyond all classes": ([A, ("a.cls", b"98765432")], "go up to 98765432"),
    "numbers with a point": ([A, ("a.cls", b"1"), B, ("b.cls", b"10.0")], "are numbers with a decimal point, such as 10.0"),
    "labels of -1 among others": ([A, ("a.cls", b"-1"), B, ("b.cls", b"4")], "are -1, which is none, for 1 of 2 images"),
    "images beside class folders": ([A, ("x/b.png", encoded(1))], "holds images beside the class folders x"),
    "splits": ([("train/x/a.png", encoded(0)), ("val/x/b.png", encoded(1))], "holds train and val, which are no classes"),
    "no images": ([("a.txt", b"x"), ("b.gif", b"x")], "holds no images .* 1 .gif, 1 .txt"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_labelled_set_is_refused_in_one_line(case, tmp_path):
    members, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as refusal:
        opened(write_tar(tmp_path / "a.tar", members))
    assert "\n" not in str(refusal.value) and str(tmp_path / "a.tar") in str(refusal.value)


def test_captions_are_no_classes_unless_somebody_says_so(tmp_path):
    members = [(f"{n}.{kind}", data) for n in range(150) for kind, data in (("png", b"x"), ("txt", b"words %d" % n))]
    file = write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)
    with pytest.raises(UserError, match="150 different texts for 150 images .* captions .* data.label_column=none"):
        opened(file)
    assert len(opened(file, label="txt").class_names) == 150 and len(opened(file, label="none").class_names) == 1


def test_a_thousand_numbers_are_classes_though_each_comes_once(tmp_path):
    members = [(f"{n}.{kind}", data) for n in range(1000) for kind, data in (("png", b"x"), ("cls", b"%d" % n))]
    assert len(opened(write_tar(tmp_path / "a.tar", members, tarfile.USTAR_FORMAT)).class_names) == 1000


def test_labels_that_are_asked_for_and_missing_are_refused(tmp_path):
    file = write_tar(tmp_path / "a.tar", [A, ("a.json", b'{"label": 1}')])
    with pytest.raises(UserError, match="have no label in the .cls files, which data.label_column asks for"):
        opened(file, label="cls")
    with pytest.raises(
        UserError, match="a.json .*has no field 'other', which data.label_column asks for; its fields are label$"
    ):
        opened(file, label="other")


def test_a_field_of_json_that_may_be_no_label_is_said(tmp_path, capsys):
    opened(write_tar(tmp_path / "a.tar", [A, ("a.json", b'{"caption": "x", "width": 20}')]))
    said = capsys.readouterr().err
    assert "no field that is called a label (caption, width)" in said and "one class" in said


def linked(tmp_path, name="a.png"):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname = tarfile.SYMTYPE, "elsewhere.png"
        archive.addfile(entry)
    return tmp_path / "a.tar"


def test_a_link_under_an_images_name_is_refused_and_one_under_another_is_counted(tmp_path, capsys):
    with pytest.raises(UserError, match="a.png is a link or a device"):
        opened(linked(tmp_path))
    with pytest.raises(UserError, match="holds no images .* but 1 .txt"):
        opened(linked(tmp_path, "a.txt"))


def whole(tmp_path):
    file = write_tar(tmp_path / "a.tar", [A, ("a.cls", b"1"), B, ("b.cls", b"0")])
    return file, file.read_bytes()


def test_a_tar_that_is_cut_anywhere_is_refused_and_named(tmp_path):
    file, data = whole(tmp_path)
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512  # of the last contents
    for length in [0, 1, 100, *range(511, end + 1, 509), end]:
        file.write_bytes(data[:length])
        with pytest.raises(UserError, match=f"the tar file {file} cannot be read") as refusal:
            opened(file)
        assert "truncated" in str(refusal.value) or "ends within" in str(refusal.value)
    file.write_bytes(data[: end + 512])
    assert len(opened(file)) == 2


def test_a_tar_that_is_cut_names_a_sample_and_no_header_of_the_format(tmp_path):
    """Both formats keep a long name before the member's own header."""
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        members = [(f"{letter * 120}.png", encoded(n)) for n, letter in enumerate("ab")]
        data = write_tar(tmp_path / "a.tar", members, format).read_bytes()
        second = data.index(b"b" * 120) // 512 * 512  # the contents that hold the second name
        for length in (second - 1, second + 5, second + 512, second + 700, second + 1100):
            (tmp_path / "a.tar").write_bytes(data[:length])
            with pytest.raises(UserError, match=r"cannot be read at byte \d+, (behind )?member '(aaa|bbb)") as refusal:
                opened(tmp_path / "a.tar")
            assert ("behind member" in str(refusal.value)) == ("'aaa" in str(refusal.value)), length
            assert ("'bbb" in str(refusal.value)) == (length > second + 511), length


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.zst"])
def test_a_compressed_tar_is_to_be_unpacked_whether_it_or_its_folder_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    unpack = "unzstd" if name.endswith("zst") else "gunzip"
    for place in (tmp_path / name, tmp_path, f"{tmp_path}/*{name[1:]}"):
        with pytest.raises(
            UserError, match=f"is compressed as a whole, .* unpack it once to a .tar, as `{unpack} {name}`"
        ):
            opened(place)


def test_a_pattern_that_stands_for_nothing_says_what_is_there(tmp_path):
    write_shards(tmp_path / "shards", SOME)
    for pattern in (f"{tmp_path}/shards/part-{{00..02}}.tar", f"{tmp_path}/shards/part-*.tar"):
        with pytest.raises(
            UserError, match="no file is called like .*: write a pattern of the files in .*shards .set-000000.tar, "
        ):
            opened(pattern)
    for pattern in (f"{tmp_path}/none/a-{{00..02}}.tar", f"{tmp_path}/none/*.tar"):
        with pytest.raises(UserError, match=f"there is no folder {tmp_path}/none: write where the files lie"):
            opened(pattern)


@pytest.mark.parametrize("suffix, magic, kind", [("gz", "gzip", "gzip"), ("bz2", "bz2", "bzip2"), ("xz", "lzma", "xz")])
def test_a_compressed_tar_is_refused_by_its_kind(tmp_path, suffix, magic, kind):
    _, data = whole(tmp_path)
    (tmp_path / "b.tar").write_bytes(__import__(magic).compress(data))
    with pytest.raises(UserError, match=f"b.tar cannot be read: it is compressed by {kind}: unpack it"):
        opened(tmp_path / "b.tar")


def test_a_sparse_file_is_refused(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    for format in ("gnu", "posix"):
        os.system(f"cd {tmp_path} && tar --format={format} -Scf a.tar a.png")
        with pytest.raises(UserError, match="it is a sparse file: make the archive anew without --sparse"):
            opened(tmp_path / "a.tar")


@pytest.mark.parametrize("size", [10, 2 << 20])
def test_archives_that_were_joined_are_not_read_as_the_first_of_them(tmp_path, size):
    file, data = whole(tmp_path)
    other = write_tar(tmp_path / "other.tar", [("c.png", bytes(size))]).read_bytes()
    file.write_bytes(data + other)
    with pytest.raises(UserError, match="goes on for .* more, which no reader would see"):
        opened(file)
    file.write_bytes(data + bytes(1 << 19))  # as tapes are filled up
    assert len(opened(file)) == 2


def test_names_that_go_up_are_those_of_images_and_class_folders(tmp_path):
    members = [(f"../train/{label}/{number}.png", encoded(number)) for number, label in enumerate("abba")]
    store = opened(write_tar(tmp_path / "a.tar", [*members, ("../.hidden/c.png", b"")]))
    assert store.class_names == ["a", "b"] and np.asarray(store.labels).tolist() == [0, 1, 1, 0]


def test_members_are_those_that_tarfile_finds(tmp_path):
    random = np.random.default_rng(0)
    for number, format in itertools.product(range(5), (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        names = [f"{n}/{'y' * int(random.integers(1, 90))}" for n in range(20)]
        members = [(name, random.bytes(int(random.integers(0, 3000)))) for name in names]
        file = write_tar(tmp_path / f"{number}{format}.tar", members, format)
        with tarfile.open(file) as archive:
            wanted = [(os.fsencode(entry.name), entry.offset_data, entry.size) for entry in archive]
        assert [member[:3] for member in TarArchive(file).members()] == wanted


def test_sizes_beyond_octal_digits_are_read(tmp_path):
    large = (8 << 30) + 12345
    for format, name in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax")):
        entry = tarfile.TarInfo("large.bin")
        entry.size = large
        with open(tmp_path / f"{name}.tar", "wb") as file:
            header = entry.tobuf(format)
            file.write(header)
            file.seek(len(header) + large + (-large % 512))  # a hole on the disk
            file.write(tarfile.TarInfo("behind").tobuf(format) + bytes(1024))
        found = list(TarArchive(tmp_path / f"{name}.tar").members())
        assert [(member.name, member.size) for member in found] == [(b"large.bin", large), (b"behind", 0)]


def test_a_file_as_a_part_of_a_shard_reads_as_the_whole(tmp_path):
    store = opened(write_shards(tmp_path / "shards", SOME))
    for index in range(len(store)):
        with store.open(index) as part:
            assert part.read(7) + part.read() == store.read(index) and part.read() == b""
            part.seek(-3, io.SEEK_END)
            assert part.read(99) == store.read(index)[-3:] and part.tell() == len(store.read(index))


def test_a_pickled_copy_maps_the_same_index(tmp_path):
    store = opened(write_shards(tmp_path / "shards", SOME))
    copy = pickle.dumps(store)
    assert len(copy) < 3000 and b"sizes" not in copy
    assert contents(pickle.loads(copy)) == contents(store)


def test_a_shard_that_is_changed_under_the_index_is_noticed(tmp_path):
    store = opened(write_shards(tmp_path / "shards", SOME))
    file = tmp_path / "shards" / "set-000001.tar"
    os.utime(file, (1, 1))
    assert store.read(0) == SOME[0].data
    with pytest.raises(UserError, match=f"{file} was changed since it was indexed"):
        store.read(4)
    assert opened(tmp_path / "shards").read(4) == SOME[4].data


def test_json_beside_is_read_whatever_else_it_holds(tmp_path):
    about = json.dumps({"caption": "x" * 5000, "label": " 12 ", "other": None}).encode()
    store = opened(write_tar(tmp_path / "a.tar", [A, ("a.json", about)]))
    assert store.class_names[store.labels[0]] == "12"
