"""Weights that lie inside installed Python packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from flowprior.errors import UserError


def package_file(name: str, suffixes: tuple[str, ...], written: str) -> Path:
    """The one file of weights inside an installed package, whose code does not run.

    Args:
        name: of the package as it is imported; with a path behind it, ``package/folder/file``, just this file.
        suffixes: a file of weights ends with one of these.
        written: the option that holds ``name``, for messages.

    Raises:
        UserError: there is no such package, or it holds no such file, or several.
    """
    package, _, path = name.partition("/")
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the package '{package}' ({written}) is not installed: pip install {package.replace('_', '-') or 'it'}"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    files = [root / path] if path else sorted(file for file in root.rglob("*") if file.name.endswith(suffixes))
    if not files or not files[0].is_file():
        raise UserError(f"the package '{package}' ({written}) holds no {path or ' or '.join(suffixes) + ' file'}")
    if len(files) > 1:
        choices = ", ".join(f"{package}/{file.relative_to(root).as_posix()}" for file in files[:4])
        raise UserError(f"the package '{package}' holds several files of weights: write {written}={choices}")
    return files[0]
