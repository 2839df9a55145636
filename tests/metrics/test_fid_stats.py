import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from flowprior.data.embedded import digit_images
from flowprior.metrics import Extractor, ImageSet, Statistics

FID_STATS = Path(__file__).resolve().parents[2] / "fid_stats"


DIGITS_ONLY = (
    "note: the extractor 'digits' was trained on scikit-learn's 1,797 handwritten digits at 32 x 32: "
    "metrics of other images by it mean little"
)


@pytest.fixture(scope="module")
def compute() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(FID_STATS / "compute.py"), run_name="compute"))


@pytest.fixture
def run(compute, monkeypatch, capsys):
    """Call the command with arguments; its exit code and what it wrote on stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["compute.py", *map(str, arguments), "--device", "cpu"])
        try:
            compute.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return call


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, image in enumerate(digit_images(32)[0][:40]):
        path = folder / str(index % 3) / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_committed_statistics_of_the_digits_are_what_the_command_makes(run, tmp_path):
    assert run("digits", "--out", tmp_path / "digits.npz")[0] == 0
    made, committed = Statistics.load(tmp_path / "digits.npz"), Statistics.load(FID_STATS / "digits.npz")
    assert (committed.count, committed.extractor) == (1797, "digits") == (made.count, made.extractor)
    assert committed.crop == made.crop == "centre 32"
    assert committed.class_counts == made.class_counts == (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
    for name in ("mu", "sigma"):
        expected = getattr(committed, name)
        np.testing.assert_allclose(getattr(made, name), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_a_folder_gives_the_moments_of_its_pictures_at_any_depth(run, picture_folder, tmp_path):
    out = tmp_path / "stats.npz"
    assert run(picture_folder, "--extractor", "digits", "--size", 32, "--world", 2, "--out", out)[0] == 0
    expected = ImageSet(digit_images(32)[0][:40], Extractor("digits")).statistics()
    read = Statistics.load(out)
    assert (read.count, read.crop, read.class_counts) == (40, "centre 32", (14, 13, 13))
    np.testing.assert_allclose(read.sigma, expected.sigma, rtol=1e-4, atol=1e-5)


def test_images_without_labels_state_no_classes(run, picture_folder, tmp_path):
    code, _ = run(picture_folder / "0", "--extractor", "digits", "--size", 32, "--out", tmp_path / "stats.npz")
    stated = Statistics.load(tmp_path / "stats.npz")
    assert code == 0 and stated.class_counts is None is stated.class_names


def test_an_unreadable_picture_is_named_in_one_line_and_nothing_is_written(run, picture_folder, tmp_path):
    folder = tmp_path / "pictures"
    (folder / "b").mkdir(parents=True)
    (folder / "a").symlink_to(picture_folder)
    (folder / "b" / "broken.jpg").write_bytes(b"no picture")
    code, message = run(folder, "--extractor", "digits", "--size", 32, "--out", tmp_path / "stats.npz")
    [line] = [line for line in message.splitlines() if not line.startswith("note: ")]
    assert code == 2 and "broken.jpg" in line and ": write --skip-bad, which leaves such images out, or mend" in line
    assert not (tmp_path / "stats.npz").exists()
    good = folder / "b" / "good.png"
    good.write_bytes(next(picture_folder.glob("*/*.png")).read_bytes())
    code, message = run(folder, "--skip-bad", "--extractor", "digits", "--size", 32, "--out", tmp_path / "stats.npz")
    assert code == 0 and "skip_bad leaves out 1 image of 42" in message
    assert Statistics.load(tmp_path / "stats.npz").class_counts == (40, 1)
    assert Statistics.load(tmp_path / "stats.npz").class_names == ("a", "b")


def test_the_command_says_in_one_line_what_it_lacks(run, tmp_path):
    for arguments, words in [
        ((tmp_path / "none", "--out", "x.npz"), "there are no images"),
        ((tmp_path,), "--out"),
        (("digits", "--size", 2, "--out", tmp_path / "x.npz"), "at least 8 pixels"),
    ]:
        code, message = run(*arguments)
        assert code == 2 and words in message and len(message.splitlines()) == 1


def test_images_that_are_enlarged_and_an_extractor_of_digits_are_said(run, picture_folder, tmp_path):
    words = (picture_folder, "--extractor", "digits", "--out", tmp_path / "x.npz")
    enlarged = "note: 40 of 40 images are smaller than 40 and are enlarged"
    fitting, small = (run(*words, "--size", size)[1].splitlines() for size in (32, 40))
    assert fitting[-1] == small[-1] == DIGITS_ONLY and enlarged in small and enlarged not in fitting
    assert run("digits", "--out", tmp_path / "x.npz") == (0, "")


def test_help_explains_every_option(capsys, monkeypatch, compute):
    monkeypatch.setattr(sys, "argv", ["compute.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        compute.main()
    text = capsys.readouterr().out
    assert all(
        word in text for word in ("digits", "IMAGES", "--extractor", "--size", "--out", "--weights-path", "examples:")
    )
