"""Shared fixtures. Run from the repository's root: ``PYTHONPATH=. pytest``."""

import sys
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
