"""Which files of a folder are images, what is said of the others, and when a folder is other images."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from flowprior.data import image_contents
from flowprior.data.images import ImageConfig, open_images, shared_fingerprint
from flowprior.data.stores.folder_listing import is_system_file, list_images
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.fingerprints import ImagesFingerprint, accept_earlier


def picture(file: Path, seed: int = 0, size: tuple[int, int] = (20, 18)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three images each, BMPs of one length."""
    for number in range(6):
        picture(tmp_path / "set" / "ab"[number % 2] / f"{number}.bmp", number)
    return tmp_path / "set"


def remarks(capsys) -> str:
    """What is said besides how many images and classes there are."""
    said = capsys.readouterr().err.splitlines(keepends=True)
    return "".join(line for line in said if "whose labels come from" not in line)


def names(root: Path) -> list[str]:
    return [os.fsdecode(name) for name in list_images(root).names]


@pytest.mark.parametrize(
    "name",
    ["._0.bmp", ".hidden/x.bmp", "a/._0.bmp", "a/.ipynb_checkpoints/0.bmp", "__MACOSX/a/._0.bmp", "a/__MACOSX/0.bmp", "Thumbs.db",
     "a/Thumbs.db", "a/desktop.ini", ".DS_Store", "a/@eaDir/0.bmp/SYNOPHOTO.jpg", "lost+found/x.bmp", "$RECYCLE.BIN/x.bmp"],
)  # fmt: skip
def test_files_of_the_system_are_passed_over_wherever_they_lie(root, name, capsys):
    before, fingerprint = names(root), open_images(ImageConfig("folder", str(root), size=8)).fingerprint()
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"not the data's")
    images = open_images(ImageConfig("folder", str(root), size=8))
    assert names(root) == before and images.class_names == ["a", "b"] and images.fingerprint() == fingerprint
    assert not remarks(capsys)


@given(st.text(min_size=1))
def test_names_of_images_and_classes_are_not_the_systems(name):
    assert is_system_file("." + name) and not is_system_file("x" + name)


@pytest.mark.parametrize("folders", [["annotations"], ["annotations", "lists"]])
def test_a_folder_without_images_beside_class_folders_is_no_class(root, folders):
    for name in folders:
        (root / name).mkdir()
    with pytest.raises(UserError) as refusal:
        list_images(root)
    assert all(f"{name} (no files)" in str(refusal.value) for name in folders) and str(root) in str(refusal.value)


def test_a_class_of_files_that_are_not_read_is_refused_with_their_number(root):
    for number in (1, 3, 5):
        (root / "b" / f"{number}.bmp").rename(root / "b" / f"{number}.gif")
    with pytest.raises(UserError, match=r"b \(3 \.gif\) without images"):
        list_images(root)


def test_images_beside_class_folders_are_refused_with_their_number(root):
    for number in range(20):
        picture(root / f"{number}.png", number)
    with pytest.raises(UserError, match=f"{root} holds 20 images beside the class folders a, b"):
        list_images(root)


def test_files_that_are_not_read_are_counted_and_named(root, capsys):
    for name in ("a/x.gif", "a/y.gif", "b/deep/z.heic", "labels.csv", "README"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("")
    assert len(list_images(root).names) == 6
    said = remarks(capsys)
    assert said.count("\n") == 1 and str(root) in said
    assert all(words in said for words in ("2 .gif", "1 .heic", "1 .csv", "1 without extension"))


def test_only_the_first_of_several_processes_says_it(root, capsys, monkeypatch):
    (root / "labels.csv").write_text("")
    monkeypatch.setenv("RANK", "1")
    list_images(root)
    assert not remarks(capsys)


@pytest.mark.parametrize("name", ["A", "\N{FULLWIDTH LATIN SMALL LETTER A}"])
def test_classes_that_differ_in_case_only_are_two_and_it_is_said(root, capsys, name):
    picture(root / name / "9.bmp", 9)
    assert list_images(root).class_names == sorted([name, "a", "b"])
    assert (f"class folders {' and '.join(sorted([name, 'a']))} differ" in capsys.readouterr().err) == (name == "A")


def test_a_folder_that_holds_only_other_kinds_says_which(tmp_path):
    (tmp_path / "a.tar").write_text("")
    with pytest.raises(UserError, match=r"holds no images .* but 1 \.tar"):
        list_images(tmp_path)


def test_linked_folders_are_looked_through_once(root, tmp_path):
    for number in range(3):
        picture(tmp_path / "elsewhere" / f"{number}.png", number)
    (root / "a" / "more").symlink_to(tmp_path / "elsewhere")
    assert [name for name in names(root) if "more" in name] == ["a/more/0.png", "a/more/1.png", "a/more/2.png"]
    (root / "b" / "again").symlink_to(root / "a")
    with pytest.raises(UserError, match="is the same folder as"):
        list_images(root)
    (root / "b" / "again").unlink()
    (root / "b" / "round").symlink_to(root / "b")
    with pytest.raises(UserError, match="is the same folder as"):
        list_images(root)


def test_a_link_to_no_file_under_an_images_name_is_refused(root):
    (root / "a" / "9.bmp").symlink_to(root / "nowhere.bmp")
    with pytest.raises(UserError, match="9.bmp is no file, or a link to none"):
        list_images(root)


def fingerprint(root: Path, size: int = 16) -> ImagesFingerprint:
    return open_images(ImageConfig("folder", str(root), size)).fingerprint()


def test_other_pictures_under_old_names_of_old_lengths_are_other_images(root):
    before = fingerprint(root)
    lengths = {file: file.stat().st_size for file in root.rglob("*.bmp")}
    picture(root / "a" / "2.bmp", 99)
    assert {file: file.stat().st_size for file in root.rglob("*.bmp")} == lengths
    assert fingerprint(root) != before and fingerprint(root).before == before.before


def test_a_copy_elsewhere_at_another_time_is_the_same_images(root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    for file in (tmp_path / "copy").rglob("*.bmp"):
        os.utime(file, (1, 1))
    assert fingerprint(tmp_path / "copy") == fingerprint(root)


def test_pictures_that_are_replaced_with_their_times_kept_are_other_images(root):
    before, file = fingerprint(root), root / "a" / "2.bmp"
    status = file.stat()
    picture(file, 99)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(root) != before


def test_of_a_large_folder_names_and_lengths_of_all_and_contents_of_a_sample_count(root, monkeypatch):
    monkeypatch.setattr(image_contents, "FILES_READ", 3)  # of six: the first, the last and one between
    before = fingerprint(root)
    original = {file: file.read_bytes() for file in sorted(root.rglob("*.bmp"))}
    counted = []
    for file, data in original.items():
        picture(file, 99)
        counted.append(fingerprint(root) != before)
        file.write_bytes(data + b"\0")
        assert fingerprint(root) != before
        file.write_bytes(data)
    assert counted[0] and counted[-1] and sum(counted) == 3
    assert fingerprint(root) == before


def test_an_earlier_versions_fingerprint_is_known(tmp_path):
    """The numbers were computed by the versions before, of these two files."""
    (tmp_path / "a").mkdir()
    for value in range(2):
        Image.fromarray(np.full((20, 18, 3), value, np.uint8)).save(tmp_path / "a" / f"{value}.bmp")
    assert fingerprint(tmp_path).before == "1cef8836b06f842a"
    assert fingerprint(tmp_path) == "2c123d9b8e2af18f"


def test_what_an_earlier_version_wrote_is_accepted_with_a_line(root, capsys, tmp_path):
    now, where = fingerprint(root), tmp_path / "inputs.json"
    assert now.before and now.before != now
    assert accept_earlier(now.before, now, where) == now
    said = remarks(capsys)
    assert str(where) in said and "names and lengths" in said and said.count("\n") == 1
    assert accept_earlier({"images": now.before, "size": 3}, now, where) == {"images": now, "size": 3}
    assert accept_earlier(f"dino images {now.before} seed 0", now, where) == f"dino images {now} seed 0"
    capsys.readouterr()
    for kept in (now, {"images": str(now)}, "another", {"images": "another"}, None):
        assert accept_earlier(kept, now, where) == kept
    assert accept_earlier(now.before, "0123456789abcdef", where) == now.before  # not of images
    assert not remarks(capsys)


def test_it_is_said_how_many_images_are_shown_otherwise_than_they_are_stored(root, capsys):
    fingerprint(root)
    assert not remarks(capsys)
    for number in range(2):
        Image.new("RGBA", (20, 20), (1, 2, 3, 4)).save(root / "a" / f"clear{number}.png")
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(root / "b" / "deep.tif")
    exif = Image.Exif()
    exif[274] = 6
    Image.new("CMYK", (20, 20)).save(root / "b" / "print.jpg", exif=exif)
    fingerprint(root)
    assert remarks(capsys) == (
        f"note: of 10 images looked at in {root}: 2 with an alpha channel shown on white, 1 with 16-bit values shown by their high byte, "
        "1 with an EXIF orientation turned upright, 1 with CMYK converted without a colour profile\n"
    )


def test_what_an_earlier_version_made_of_images_that_it_showed_otherwise_is_refused(root, tmp_path):
    Image.fromarray(np.full((20, 18), 5000, np.uint16)).save(root / "a" / "gray.png")
    now = fingerprint(root)
    with pytest.raises(
        UserError, match=r"inputs.json was written by an earlier version, which read .*gray.png otherwise"
    ):
        accept_earlier(now.before, now, tmp_path / "inputs.json")


class TwoNodes(World):
    """The first process of two nodes; the other node's answers are given."""

    def all_gather(self, value):
        return [value, self.other if isinstance(value, str) else value]


def test_nodes_that_see_other_contents_are_told(root, monkeypatch):
    images, world = open_images(ImageConfig("folder", str(root))), TwoNodes(0, 2)
    object.__setattr__(world, "other", images.fingerprint())
    assert shared_fingerprint(images, world) == images.fingerprint()
    object.__setattr__(world, "other", "0" * 16)
    with pytest.raises(UserError, match="the nodes see different images"):
        shared_fingerprint(images, world)


def test_images_that_are_enlarged_are_counted(root, capsys):
    picture(root / "a" / "2.bmp", 2, size=(40, 18))
    picture(root / "a" / "4.bmp", 4, size=(20, 19))
    fingerprint(root, size=18)
    assert not remarks(capsys)
    fingerprint(root, size=19)
    assert (
        "of 6 images looked at" in (told := capsys.readouterr().err)
        and "5 with fewer than 19 pixels on a side, enlarged" in told
    )


def test_copies_of_training_images_are_counted_by_their_contents(root, tmp_path):
    held_out = tmp_path / "held_out"
    shutil.copy(root / "a" / "2.bmp", held_out.parent / "copy.bmp")
    picture(held_out / "one" / "new.bmp", 77)
    picture(held_out / "one" / "longer.bmp", 78, size=(30, 30))
    sets = [open_images(ImageConfig("folder", str(folder), size=8)) for folder in (held_out, root)]
    assert sets[0].copies_of(sets[1]) == 0
    shutil.move(held_out.parent / "copy.bmp", held_out / "one" / "renamed.bmp")
    sets[0] = open_images(ImageConfig("folder", str(held_out), size=8))
    assert sets[0].copies_of(sets[1]) == 1 and sets[1].copies_of(sets[1]) == 6
