"""``torch.compile`` for the parts of a model that a step runs, and what the machine needs for it."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch
from torch import nn

from flowprior.errors import UserError


def compile_parts(model: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Have ``model``'s ``compiled_parts`` compiled when they are first called, or all of it where it names none.

    The parts, not the objective around them: its noise has a new seed, and so would have a new graph, in every step.

    Raises:
        UserError: a compiler, or Python's headers, are missing on this machine. Without this check the first step would end in a
            traceback of PyTorch's compiler.
    """
    if backend == "inductor":
        check_compiler(device)
    for part in getattr(model, "compiled_parts", [model]):
        part.compile(backend=backend)


def has_compiler(device: torch.device) -> bool:
    """Whether :func:`check_compiler` finds all it looks for."""
    try:
        check_compiler(device)
    except UserError:
        return False
    return True


def check_compiler(device: torch.device) -> None:
    """Look for what ``torch.compile`` calls: on a CPU a C++ compiler, on a GPU the C compiler that Triton launches its kernels with.

    Raises:
        UserError: there is none, or Python's headers are missing.
    """
    language, variable, names = (
        ("C", "CC", ("gcc", "clang"))
        if device.type == "cuda"
        else ("C++", "CXX", ("clang++",) if sys.platform == "darwin" else ("g++",))
    )
    names = (os.environ[variable],) if os.environ.get(variable) else names
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"the option compile needs a {language} compiler, and there is no {' or '.join(names)} here: install one (apt install g++), "
            f"name yours in the environment variable {variable}, or write train.compile=false"
        )
    headers = Path(sysconfig.get_paths()["include"])
    if not (headers / "Python.h").is_file():
        raise UserError(
            f"the option compile needs Python's headers, and there is no {headers / 'Python.h'}: install them (apt install python3-dev), "
            "or write train.compile=false"
        )
