"""The eps of a model's norms, which libraries set differently in their versions: written beside saved weights, and read from there."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from flowprior.errors import UserError


def norm_eps(module: nn.Module) -> dict[str, float]:
    """The eps of every norm by name; numbers within names are ``*``, as in ``blocks.*.norm1``.

    Raises:
        ValueError: norms of one such name differ.
    """
    by_name: dict[str, float] = {}
    for name, norm in _norms(module):
        if by_name.setdefault(name, norm.eps) != norm.eps:
            raise ValueError(f"norms called {name} have eps {by_name[name]} and {norm.eps}")
    return by_name


def set_norm_eps(module: nn.Module, saved: Any, where: str) -> None:
    """Give every norm of ``module`` the eps that :func:`norm_eps` gave once.

    Raises:
        UserError: ``saved``, which stands in ``where``, is not of this module's norms.
    """
    norms = list(_norms(module))
    good = isinstance(saved, dict) and all(isinstance(eps, float) and 0 < eps < 1 for eps in saved.values())
    if not good or {name for name, _ in norms} != saved.keys():
        raise UserError(f"{where} states the eps of other norms than the model's (norm_eps): restore the file")
    for name, norm in norms:
        norm.eps = saved[name]


def _norms(module: nn.Module) -> list[tuple[str, Any]]:
    """Whatever has an eps, since every library has norms of its own."""
    parts = ((name, part) for name, part in module.named_modules() if isinstance(getattr(part, "eps", None), float))
    return [(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name), part) for name, part in parts]
