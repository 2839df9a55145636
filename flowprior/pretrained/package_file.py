"""The file of weights that a person names, by itself or as an installed Python package that holds it."""

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


def chosen_file(weights: str, package: str, section: str) -> Path | None:
    """The file that the options ``weights`` or ``package`` of a section name; None where neither does.

    Raises:
        UserError: both do, there is no such file, or the package holds none.
    """
    if weights and package:
        raise UserError(f"{section}.weights and {section}.package both name a file: leave out one of them")
    if package:
        return package_file(package, (".safetensors", ".pth"), f"{section}.package")
    if weights and not Path(weights).is_file():
        raise UserError(f"there is no weight file at '{weights}' ({section}.weights)")
    return Path(weights) if weights else None
