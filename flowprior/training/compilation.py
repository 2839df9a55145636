"""``torch.compile`` for the parts of a model that a step runs."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator

import torch
from torch import nn

from flowprior.errors import UserError


def compile_parts(model: nn.Module, backend: str = "inductor", backward_again: bool = False) -> None:
    """Have ``model``'s ``compiled_parts`` compiled when they are first called, or all of it where it names none.

    The parts, not the objective around them: its noise has a new seed, and so would have a new graph, in every step.

    Args:
        backward_again: a step may go backward through a part more than once, so that what the backward pass reads must stay.
    """
    if backward_again:
        torch._functorch.config.donated_buffer = False
    for part in getattr(model, "compiled_parts", [model]):
        part.compile(backend=backend)


@contextlib.contextmanager
def compiler_failures_told() -> Iterator[None]:
    """Within, what ``torch.compile`` misses on this machine is one line; other failures stay what they are.

    Raises:
        UserError: there is no compiler, or it failed, or there is no Triton for this GPU.
    """
    try:
        yield
    except (RuntimeError, subprocess.CalledProcessError) as error:
        cause = getattr(error, "inner_exception", error)
        if not _of_the_machine(cause):
            raise
        raise UserError(
            f"torch.compile failed: {_telling_line(cause)}; where that is for want of a compiler or of Python's headers: apt install g++ "
            "python3-dev (the environment variable CXX, or CC on a GPU, names another compiler); or set train.compile to false "
            "(sample.compile where images are drawn, flow.train.compile in the toys)"
        ) from error


def _of_the_machine(cause: BaseException) -> bool:
    from torch._inductor import exc  # a second of imports

    names = ("InvalidCxxCompiler", "CppCompileError", "TritonMissing", "GPUTooOldForTriton")
    types = tuple(getattr(exc, name) for name in names if hasattr(exc, name))
    # Triton has no exceptions of its own, and of the processes that compile for it there is the text only.
    said = f"{type(cause).__name__}: {cause}"
    return isinstance(cause, types) or "CalledProcessError" in said or "C compiler" in said


def _telling_line(cause: BaseException) -> str:
    """The first line that is marked as an error; else the last one."""
    output = getattr(cause, "output", None)  # of the compiler, without its command
    lines = [line.strip() for line in str(output or cause).splitlines() if line.strip()]
    marked = [line for line in lines if re.search("error: ", line, re.IGNORECASE)]
    return (marked or lines[-1:] or [type(cause).__name__])[0][:300]
