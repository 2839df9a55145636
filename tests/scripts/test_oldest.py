"""scripts/test.sh --oldest, with a stand-in for uv that notes what it is asked for."""

import shutil
import subprocess

import pytest

UV = """#!/bin/sh
echo "$@" >> uv.log
case $1 in venv)
  mkdir -p .venv-oldest/bin
  printf '#!/bin/sh\\necho "pytest was given: $*"\\n' > .venv-oldest/bin/python
  chmod +x .venv-oldest/bin/python
esac
"""


@pytest.fixture
def tree(tmp_path, repository):
    (tmp_path / "scripts").mkdir()
    for name in ("scripts/test.sh", "scripts/common.sh", "requirements.txt", "requirements-test.txt"):
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    return tmp_path


def test_sh(tree, *words):
    command = ["bash", str(tree / "scripts" / "test.sh"), *words]
    return subprocess.run(command, env={"PATH": f"{tree / 'bin'}:/usr/bin:/bin"}, capture_output=True, text=True)


test_sh.__test__ = False


def test_the_oldest_versions_are_installed_once_and_skipped_tests_are_named(tree):
    (tree / "bin" / "uv").write_text(UV)
    (tree / "bin" / "uv").chmod(0o755)
    for _ in range(2):
        done = test_sh(tree, "--oldest", "tests/mar")
        assert done.returncode == 0 and "--dist loadfile -rs tests/mar" in done.stdout
    venv, install = (tree / "uv.log").read_text().splitlines()
    assert venv.endswith(".venv-oldest")
    assert "--resolution lowest-direct" in install and install.endswith("-r requirements-test.txt")
    (tree / "requirements.txt").write_text("torch>=2.7\n")
    test_sh(tree, "--oldest")
    assert len((tree / "uv.log").read_text().splitlines()) == 4


@pytest.mark.skipif(shutil.which("uv", path="/usr/bin:/bin") is not None, reason="uv is everywhere here")
def test_without_uv_one_line_says_where_it_comes_from(tree):
    done = test_sh(tree, "--oldest")
    assert done.returncode == 2 and done.stderr == (
        "error: --oldest needs uv, which finds the oldest versions: pip install uv\n"
    )
