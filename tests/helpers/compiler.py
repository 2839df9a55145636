"""Whether this machine has what ``torch.compile`` needs on a CPU."""

import shutil
import sysconfig
from pathlib import Path

import pytest

needs_compiler = pytest.mark.skipif(
    not shutil.which("g++") or not Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
    reason="there is no g++, or no Python.h",
)
