"""``torch.compile`` for the parts of a model that a step runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from flowprior.errors import UserError


def compile_parts(model: nn.Module, backend: str = "inductor") -> None:
    """Have ``model``'s ``compiled_parts`` compiled when they are first called, or all of it where it names none.

    The parts, not the objective around them: its noise has a new seed, and so would have a new graph, in every step.
    """
    for part in getattr(model, "compiled_parts", [model]):
        part.compile(backend=backend)


@contextlib.contextmanager
def compiler_failures_told() -> Iterator[None]:
    """Within, a failure of PyTorch's compiler, of which most mean that this machine lacks what it calls, is one line.

    Raises:
        UserError: in place of the compiler's exception.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # a second of imports

        if not isinstance(error, BackendCompilerFailed):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"torch.compile failed ({reason}): it needs a compiler and Python's headers (apt install g++ python3-dev; the environment variable "
            "CXX, or CC on a GPU, names another compiler), or set train.compile to false"
        ) from error
