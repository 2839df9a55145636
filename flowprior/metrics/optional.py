"""Libraries that only measuring needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from flowprior.errors import UserError

OPTIONAL = {"sklearn", "torch_fidelity", "torchmetrics"}


def library(module: str) -> ModuleType:
    """The module of this name.

    Raises:
        UserError: it needs a library that is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        raise UserError(
            f"{module} needs {error.name}: pip install -r requirements.txt, or this package with its extra [metrics]"
        ) from None
