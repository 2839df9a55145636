"""Shared fixtures. Run from the repository's root: ``PYTHONPATH=. pytest``."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "tests" / "helpers"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from flowprior.notes import forget_notes  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("project", deadline=None)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def notes_as_of_a_new_command() -> None:
    forget_notes()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1234)


@pytest.fixture
def repository() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def warm_python() -> Iterator[str]:
    """The path of an interpreter that spares every process of a test its ten seconds of imports; see its file."""
    folder = Path(tempfile.mkdtemp(prefix="warm"))  # short: the path of a socket has 108 characters at most
    client = ROOT / "tests" / "helpers" / "warm_python.py"
    (folder / "python").write_text(f"#!/bin/sh\nexec '{sys.executable}' -S '{client}' {folder}/socket \"$@\"\n")
    (folder / "python").chmod(0o755)
    with subprocess.Popen(
        [sys.executable, str(client), "serve", f"{folder}/socket"], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as server:
        while not (folder / "socket").exists():
            assert server.poll() is None, "the warm interpreter ended before it began"
            time.sleep(0.05)
        yield str(folder / "python")
        server.kill()
    shutil.rmtree(folder)
