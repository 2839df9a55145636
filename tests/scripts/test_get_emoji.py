"""Emoji out of packages in npm's format, made here."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest
from PIL import Image

from flowprior.data.images import ImageConfig, open_images
from scripts import unpack_emoji

EMOJI = [
    ("Smileys & Emotion", "0001.png", True),
    ("Flags", "0002.png", True),
    ("Flags", "0003.png", False),  # which the vendor does not have
    ("Component", "0004.png", True),
]


def png(side, alpha):
    buffer = io.BytesIO()
    Image.new("RGBA", (side, side), (200, 0, 100, alpha)).save(buffer, "png")
    return buffer.getvalue()


def package(file, vendor="twitter", side=64, without=()):
    listed = [
        {
            "category": category,
            "image": name,
            f"has_img_{vendor}": there,
            "skin_variations": {"1F3FB": {"image": "x.png"}},
        }
        for category, name, there in EMOJI
    ]
    members = {
        "package.json": json.dumps({"name": f"emoji-datasource-{vendor}"}).encode(),
        "emoji.json": json.dumps(listed).encode(),
        f"img/{vendor}/64/x.png": png(64, 255),
        **{f"img/{vendor}/64/{name}": png(side, 255 if "1" in name else 0) for _, name, there in EMOJI if there},
    }
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            if name not in without:
                info = tarfile.TarInfo(f"package/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture
def unpack(monkeypatch, capsys):
    """Runs the script in this process: its exit code, and what it says on either stream."""

    def run(folder, *packages):
        monkeypatch.setattr(sys, "argv", ["unpack_emoji.py", str(folder), *map(str, packages)])
        code = 0
        try:
            unpack_emoji.main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_base_images_of_all_vendors_lie_by_category_on_white_with_their_licences_and_are_read_as_classes(
    unpack, tmp_path
):
    files = [package(tmp_path / f"{vendor}.tgz", vendor) for vendor in ("twitter", "google")]
    code, out, errors = unpack(tmp_path / "emoji", *files)
    assert code == 0 and "4 images: 2 flags, 2 smileys_emotion" in out, errors
    assert "laid on white" in errors
    licences = (tmp_path / "emoji" / "LICENSES").read_text()
    assert "CC-BY 4.0" in licences and "Apache License 2.0" in licences
    images = open_images(ImageConfig(source="files", path=str(tmp_path / "emoji"), size=64))
    assert len(images) == 4 and images.class_names == ["flags", "smileys_emotion"]
    pixels = {
        name: Image.open(tmp_path / "emoji" / name)
        for name in ("flags/google_0002.png", "smileys_emotion/google_0001.png")
    }
    assert [image.getpixel((0, 0)) for image in pixels.values()] == [(255, 255, 255), (200, 0, 100)]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"without": ("img/twitter/64/0002.png",)}, "holds no package/img/twitter/64/0002.png"),
        ({"without": ("emoji.json",)}, "is no package of emoji-datasource"),
        ({"side": 20}, "is 20 x 20, not 64 x 64"),
        ({"vendor": "apple"}, "licence is not known"),
    ],
)
def test_a_package_that_is_not_as_it_should_be_is_a_line_and_leaves_no_folder(unpack, tmp_path, options, said):
    code, _, errors = unpack(tmp_path / "emoji", package(tmp_path / "package.tgz", **options))
    assert code == 2 and said in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "emoji").exists()


def test_a_folder_with_files_in_it_is_left_as_it_is(unpack, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    code, _, errors = unpack(tmp_path / "mine", package(tmp_path / "package.tgz"))
    assert code == 2 and "not empty" in errors and (tmp_path / "mine" / "file").read_text() == "x"


def test_where_npm_is_missing_a_line_says_so_and_a_folder_that_is_there_needs_none(scripts, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "env", "sh", "cat", "mktemp", "rm"):
        os.symlink(shutil.which(name), tools / name)
    command = scripts.command("get_emoji", str(tmp_path / "emoji"), tiny=False, PATH=str(tools))
    done = subprocess.run(**command, capture_output=True, timeout=240)
    assert done.returncode == 2 and done.stderr.startswith("error: npm is not there"), done.stderr
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "LICENSES").write_text("")
    done = subprocess.run(**command, capture_output=True, timeout=240)
    assert done.returncode == 0 and done.stdout.strip() == f"emoji: {tmp_path / 'emoji'}"


def test_an_index_of_another_shape_and_a_vendor_twice_are_a_line(unpack, tmp_path):
    first = package(tmp_path / "first.tgz")
    code, _, errors = unpack(tmp_path / "emoji", first, package(tmp_path / "second.tgz"))
    assert code == 2 and "second.tgz is a second package of twitter's" in errors
    odd = tmp_path / "odd.tgz"
    with tarfile.open(odd, "w:gz") as archive:
        for name, content in {"package.json": b'{"name": "emoji-datasource-twitter"}', "emoji.json": b"[3]"}.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    code, _, errors = unpack(tmp_path / "emoji", odd)
    assert code == 2 and "odd.tgz is no package of emoji-datasource" in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "emoji").exists()
