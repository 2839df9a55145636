"""Presets: YAML files by name, which may be based on each other, and the config that a command line asks for."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from flowprior.errors import UserError
from flowprior.run.config import apply_overrides, build_config, list_options
from flowprior.run.written import NumbersAsWritten, as_written, read_yaml

C = TypeVar("C")
ROOT = Path(__file__).resolve().parents[2]


def find_preset(name: str, folder: Path) -> Path:
    """The YAML file of a preset: a name in ``folder`` or the path of a file of one's own."""
    own = Path(name)
    if own.suffix in (".yaml", ".yml"):
        if not own.is_file():
            raise UserError(f"there is no preset file {own}")
        return own
    path = folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise UserError(
            f"there is no preset '{name}' for this stage: choose one of {there}, or the path of a .yaml file"
        )
    return path


def read_preset(path: Path, folder: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A preset's options. ``base: NAME`` in it names another preset, found as :func:`find_preset` does, whose options it changes.

    Raises:
        UserError: a file cannot be read, a base is not there, or presets are each other's base.
    """
    values = read_yaml(path, NumbersAsWritten)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"'base' in {path} is the name of another preset, not {base!r}")
    own = path.parent / base  # beside a preset of one's own
    below = find_preset(str(own) if own.is_file() else base, folder)
    if below.resolve() in {p.resolve() for p in (path, *above)}:
        raise UserError(f"the preset {path} is based on itself, by way of {below.name}")
    return _merged(read_preset(below, folder, (path, *above)), values)


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` over them, section by section."""
    both = {
        k: _merged(values[k], v) for k, v in changes.items() if isinstance(v, dict) and isinstance(values.get(k), dict)
    }
    return {**values, **changes, **both}


class Parser(argparse.ArgumentParser):
    """argparse's, whose description keeps its lines and whose objections are a :class:`UserError`.

    Args:
        options_of: a config, whose options ``--help`` lists below the rest.
        before: when the defaults are these, for that list's heading.
    """

    def __init__(self, *, options_of: type | None = None, before: str = "", **more: Any) -> None:
        options = list_options(options_of) if options_of else []
        width = max((len(name) for name, _, _ in options), default=0)
        lines = [f"  {name:<{width}}  {meaning} [{default}]" for name, default, meaning in options]
        more = {"formatter_class": argparse.RawDescriptionHelpFormatter, **more}
        heading = f"options, with their defaults{before}:"
        super().__init__(epilog="\n".join([heading, *lines]) if options else None, **more)

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise UserError(f"{message} (--help lists every option)")


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What a person wrote.

    Attributes:
        preset: as it was named.
        words: the options behind it, as they were written.
        options: their dotted names, ``model.mar.width`` say.
    """

    preset: str = ""
    words: tuple[str, ...] = ()
    options: frozenset[str] = frozenset()


def config_from_command_line(
    cls: type[C],
    presets: Path,
    description: str,
    argv: list[str] | None = None,
    find: Callable[[str, Path], Path] = find_preset,
    default: str = "digits",
) -> C:
    """The config that a command line asks for: ``[--preset NAME] [option=value ...]``; ``--help`` prints every field.

    ``run_dir``, which every stage's config has, is ``runs/<preset>`` unless it is given. A yes-or-no option of the top level, ``dry_run`` say,
    is also a flag, ``--dry-run``. The preset is ``default`` where none is named, and the file that ``find`` gives for name and folder.
    """
    return read_command_line(cls, presets, description, argv, find, default)[0]


def read_command_line(
    cls: type[C],
    presets: Path,
    description: str,
    argv: list[str] | None = None,
    find: Callable[[str, Path], Path] = find_preset,
    default: str = "digits",
) -> tuple[C, CommandLine]:
    """The config, as :func:`config_from_command_line` has it, and what was written."""
    parser = Parser(description=description, options_of=cls, before=" before the preset is applied")
    folder = presets.resolve()
    there = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    parser.add_argument("--preset", default=default, help=f"a name in {there}, or a .yaml file [{default}]")
    parser.add_argument(
        "overrides", nargs="*", metavar="option=value", help="dotted overrides, e.g. optim.lr=2e-4 train.steps=1000"
    )
    for field in dataclasses.fields(cls):
        if typing.get_type_hints(cls)[field.name] is bool:
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", action="store_true", help=field.metadata.get("help", "")
            )
    try:
        arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    except AttributeError as error:  # a signal that came within argparse, whose cleaning up then fails
        raise error.__context__ or error from None
    preset = find(arguments.preset, presets)
    values = apply_overrides(read_preset(preset, presets), arguments.overrides)
    values |= {name: True for name, given in vars(arguments).items() if given is True}
    values.setdefault("run_dir", f"runs/{Path(arguments.preset).stem}")
    written = {text.partition("=")[0]: as_written(text.partition("=")[2]) for text in arguments.overrides}
    return build_config(cls, values), CommandLine(
        arguments.preset, tuple(arguments.overrides), frozenset(_leaves(written))
    )


def _leaves(values: dict[str, Any], where: str = "") -> list[str]:
    """Dotted names of all options in ``values``, section by section."""
    names = []
    for key, value in values.items():
        dotted = f"{where}{key}"
        names += _leaves(value, f"{dotted}.") if isinstance(value, dict) and value else [dotted]
    return names
