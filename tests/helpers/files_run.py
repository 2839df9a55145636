"""Which files of the project a person reads who follows a command: those with a function that runs before the first ``backward()``.

    python tests/helpers/files_run.py tokenizer.train_ae --preset digits regulariser.name=none run_dir=/tmp/run

Bodies of modules and classes do not count, nor their comprehensions, but functions that they call do.
"""

from __future__ import annotations

import inspect
import runpy
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


COMPREHENSIONS = (
    "<listcomp>",
    "<setcomp>",
    "<dictcomp>",
    "<genexpr>",
)  # with functions of their own before Python 3.12


class Reached(BaseException):
    """The first ``backward()``."""


def files_run(module: str, words: list[str]) -> dict[str, set[str]]:
    """The functions that run, by file, from ``python -m module words`` to its first ``backward()``; for a fresh interpreter."""
    import torch

    found: dict[str, set[str]] = {}

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        installed = code.co_filename.startswith(f"{sys.prefix}/")  # an environment may lie in the project
        counts = code.co_name not in COMPREHENSIONS and not installed
        if (
            event == "call"
            and counts
            and code.co_flags & inspect.CO_OPTIMIZED
            and code.co_filename.startswith(f"{ROOT}/")
        ):
            found.setdefault(code.co_filename.removeprefix(f"{ROOT}/"), set()).add(code.co_name)

    def stop(*_: Any, **__: Any) -> None:
        raise Reached

    torch.Tensor.backward = stop
    sys.argv = [module, *words]
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Reached:
        return found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    raise RuntimeError(f"{module} came to its end without a backward()")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    for file, functions in sorted(files_run(sys.argv[1], sys.argv[2:]).items()):
        print(f"{file}: {' '.join(sorted(functions))}")
