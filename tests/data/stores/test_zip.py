"""Zip files: their directory is read as zipfile reads it, and a file in them by its place."""

import io
import json
import stat
import struct
import zipfile
import zlib

import numpy as np
import pytest

from flowprior.data.stores.recognise import open_store
from flowprior.data.stores.zip import ZipArchive
from flowprior.errors import UserError
from image_sets import encoded, pictures, write_folder, write_zip

SOME = pictures(8)


def contents(store) -> list[tuple[bytes, str]]:
    return [(store.read(index), store.class_names[store.labels[index]]) for index in range(len(store))]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_class_folders_in_a_zip_are_classes(tmp_path, compression):
    store = open_store(str(write_zip(tmp_path / "set.zip", SOME, compression)))
    assert contents(store) == [(image.data, image.label) for image in SOME] and store.kind == "zip"
    assert store.name(5) == f"{tmp_path}/set.zip: {SOME[5].file}" and store.lengths(2, 4) == [
        len(i.data) for i in SOME[2:4]
    ]
    with store.open(3) as file:
        assert file.read() == SOME[3].data


def test_a_folder_that_holds_everything_is_no_class(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for image in SOME:
            archive.writestr(f"images/pets/{image.file}", image.data)
        for name in ("__MACOSX/._x.png", "images/pets/.DS_Store", "images/pets/ant/Thumbs.db", "images/notes.txt"):
            archive.writestr(name, b"x")
    store = open_store(str(tmp_path / "set.zip"))
    assert store.class_names == ["ant", "bee"] and len(store) == 8
    said = capsys.readouterr().err
    assert (
        "of 2 classes, whose labels come from its folders below images/pets" in said and "are not read: 1 .txt" in said
    )


def test_labels_beside_the_images_are_read_as_in_tar(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(4):
            archive.writestr(f"{number}.png", encoded(number))
            archive.writestr(f"{number}.json", json.dumps({"class": f"c{number % 2}"}))
    assert contents(open_store(str(tmp_path / "set.zip"))) == [(encoded(n), f"c{n % 2}") for n in range(4)]


def test_a_dot_in_a_name_is_none_of_an_extension_where_no_labels_lie_beside(tmp_path):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in ("a/photo.v1.png", "a/photo.v2.png", "b/photo.png", "b/photo.bmp"):
            archive.writestr(name, encoded(0))
    store = open_store(str(tmp_path / "set.zip"))
    assert len(store) == 4 and np.asarray(store.labels).tolist() == [0, 0, 1, 1]


def zip64(images) -> bytes:
    """With ZIP64 records throughout, as for a file beyond 4 GB: the directory's numbers, and the record of the directory."""
    data, directory = bytearray(), bytearray()
    for image in images:
        name, place, size, check = image.file.encode(), len(data), len(image.data), zlib.crc32(image.data)
        data += struct.pack("<4s5H3L2H", b"PK\x03\x04", 45, 0, 0, 0, 0, check, 0xFFFFFFFF, 0xFFFFFFFF, len(name), 20)
        data += name + struct.pack("<2H2Q", 1, 16, size, size) + image.data
        extra = struct.pack("<2H", 0x5455, 5) + b"\x01time" + struct.pack("<2H3Q", 1, 24, size, size, place)
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 45, 45, 0, 0, 0, 0, check, 0xFFFFFFFF, 0xFFFFFFFF, len(name), len(extra), 0, 0, 0, 0, 0xFFFFFFFF
        ) + name + extra  # fmt: skip
    at = len(data)
    end = at + len(directory)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, len(images), len(images), len(directory), at)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    return (
        bytes(data + directory)
        + record
        + locator
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    )


def test_numbers_of_64_bits_are_read(tmp_path):
    (tmp_path / "set.zip").write_bytes(zip64(SOME))
    assert zipfile.ZipFile(tmp_path / "set.zip").testzip() is None
    assert contents(open_store(str(tmp_path / "set.zip"))) == [(image.data, image.label) for image in SOME]


@pytest.mark.parametrize("write", [lambda file: write_zip(file, SOME), lambda file: file.write_bytes(zip64(SOME))])
def test_something_before_the_archive_and_a_comment_behind_it_shift_nothing(tmp_path, write):
    write(tmp_path / "set.zip")
    data = (tmp_path / "set.zip").read_bytes()
    (tmp_path / "set.zip").write_bytes(
        b"#!/bin/sh\n" * 50 + data[:-2] + struct.pack("<H", 300) + b"PK\x05\x06 in a comment".ljust(300)
    )
    assert contents(open_store(str(tmp_path / "set.zip"))) == [(image.data, image.label) for image in SOME]


def test_members_are_those_that_zipfile_finds(tmp_path):
    random = np.random.default_rng(0)
    for compression in 4 * (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "set.zip", "w", compression) as archive:
            for n in range(int(random.integers(1, 60))):
                archive.writestr(
                    f"ä{n}/" if n % 7 == 6 else f"ä{n}", b"" if n % 7 == 6 else bytes(int(random.integers(0, 5000)))
                )
        with zipfile.ZipFile(tmp_path / "set.zip") as archive:
            wanted = [
                (i.filename.encode(), i.header_offset, i.file_size, i.compress_size, i.CRC)
                for i in archive.infolist()
                if not i.is_dir()
            ]
        read = ZipArchive(tmp_path / "set.zip")
        found = list(read.members())
        assert [(m.name, m.offset, m.size, m.packed, m.check) for m in found] == wanted
        assert all(read.contents(member) == bytes(member.size) for member in found)


def test_a_zip_that_is_cut_is_refused_and_named(tmp_path):
    file = write_zip(tmp_path / "set.zip", SOME)
    data = file.read_bytes()
    for length in (0, 3, 100, len(data) // 2, len(data) - 30, len(data) - 1):
        file.write_bytes(data[:length])
        with pytest.raises(UserError, match=f"the zip file {file} cannot be read: .*truncated"):
            open_store(str(file))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_image_whose_bytes_are_damaged_is_named(tmp_path, compression):
    file = write_zip(tmp_path / "set.zip", SOME, compression)
    with zipfile.ZipFile(file) as archive:
        place = archive.infolist()[4].header_offset + 30 + len(SOME[4].file) + 50
    data = bytearray(file.read_bytes())
    data[place] ^= 255
    file.write_bytes(data)
    store = open_store(str(file))
    assert store.read(3) == SOME[3].data and store.read(5) == SOME[5].data
    with pytest.raises(UserError, match=f"{file}: {SOME[4].file} is damaged in the zip file"):
        store.read(4)


def test_what_a_zip_may_hold_and_is_not_read_is_refused_by_name(tmp_path):
    file = tmp_path / "set.zip"
    for compression, kind in ((zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "LZMA")):
        write_zip(file, SOME, compression)
        with pytest.raises(UserError, match=f"{SOME[0].file} is packed by {kind}"):
            open_store(str(file))
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("a.png")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "elsewhere.png")
    with pytest.raises(UserError, match="a.png is a link"):
        open_store(str(file))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(200 << 20))
    with pytest.raises(UserError, match="a.png says that .* bytes of it become 209715200"):
        open_store(str(file))
    write_zip(file, SOME)
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=f"{SOME[0].file} is encrypted"):
        open_store(str(file))


def test_a_zip_of_a_folder_holds_the_folders_images(tmp_path):
    folder = open_store(str(write_folder(tmp_path / "folder", SOME)))
    packed = open_store(str(write_zip(tmp_path / "set.zip", SOME)))
    assert contents(packed) == contents(folder) and packed.class_names == folder.class_names
    buffer = io.BytesIO(packed.read(0))
    assert buffer.getvalue() == SOME[0].data
