"""Configs: a dataclass tree, a YAML preset over its defaults, and dotted overrides over both. Unknown keys are refused."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from flowprior.errors import UserError, one_line

C = TypeVar("C")
LARGEST_YAML_BYTES = 1 << 20


def option(default: Any, help: str, *, changes_result: bool = True, before: Any = None) -> Any:
    """A dataclass field with its meaning for ``--help``.

    Args:
        default: the value, or a dataclass type for a nested section.
        help: one line.
        changes_result: False for what may differ when a run is resumed (logging, workers).
        before: what holds in runs that began before it was an option; None: the default.
    """
    metadata = {"help": help, "changes_result": changes_result, "before": before}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def build_config(cls: type[C], values: dict[str, Any], where: str = "") -> C:
    """An instance of the dataclass ``cls`` from nested ``values``; the rest keeps its default.

    Raises:
        UserError: unknown key (with the nearest known one), wrong type, or a value that ``__post_init__`` refuses.
    """
    if not isinstance(values, dict):
        named = next((field.name for field in dataclasses.fields(cls) if field.name in ("name", "source")), None)
        hint = f": did you mean {where}.{named}={values}?" if named and where and isinstance(values, str) else ""
        raise UserError(f"config section '{where or 'top level'}' must be a mapping of options, not {values!r}{hint}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    arguments = {}
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"config has no option '{dotted}'; the nearest is '{dotted[: len(dotted) - len(str(key))]}{near}' (--help lists all)"
            )
        arguments[key] = _coerce(hints[key], value, dotted)
    for field in dataclasses.fields(cls):
        if field.name not in arguments and dataclasses.is_dataclass(hints[field.name]):
            arguments[field.name] = build_config(
                hints[field.name], {}, f"{where}.{field.name}" if where else field.name
            )
    try:
        return cls(**arguments)
    except ValueError as error:
        raise UserError(f"config section '{where}': {error}" if where else f"config: {error}") from error


class _NumberAsWritten(str):
    """A number on the command line, before it is known whether a number is wanted: ``run_dir=010`` names a folder."""


def _coerce(hint: Any, value: Any, dotted: str) -> Any:
    """``value`` as the annotated type, where that loses nothing."""
    if isinstance(value, _NumberAsWritten):
        value = str(value) if hint is str else yaml.safe_load(value)
    if dataclasses.is_dataclass(hint):
        return build_config(hint, value if value is not None else {}, dotted)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(a for a in arguments if a is not type(None)), value, dotted)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"option '{dotted}' is one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"option '{dotted}' is a list such as [1, 2], not {value!r}")
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            raise UserError(f"option '{dotted}' is a list of {len(arguments)} values, not {value!r}")
        return tuple(_coerce(arguments[0], item, dotted) for item in value)
    try:
        if hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
            return float(value)
        if hint is int and not isinstance(value, bool):
            if isinstance(value, int):  # a float holds no more than 53 bits of it
                return value
            if float(value) == int(float(value)):
                return int(float(value))
        if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
        if hint is bool and isinstance(value, bool):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    raise UserError(f"option '{dotted}' is {names.get(hint, hint)}, not {value!r}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; a :class:`UserError` if there is none."""
    try:
        if path.stat().st_size > LARGEST_YAML_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        values = yaml.safe_load(path.read_text())
        if _unfolded_size(values) > LARGEST_YAML_BYTES:
            raise ValueError("its aliases unfold without end")
    except (
        OSError,
        ValueError,
        RecursionError,
        yaml.YAMLError,
    ) as error:  # ValueError: not UTF-8, or a date such as 2001-99-99
        raise UserError(f"cannot read the config {path}: {one_line(error, limit=None)}") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"the config {path} must hold 'option: value' lines")
    return values or {}


def _unfolded_size(value: Any, known: dict[int, int] | None = None) -> int:
    """Values in ``value``, every alias counted as often as it is used; a RecursionError where one holds itself."""
    known = {} if known is None else known
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded_size(part, known) for part in parts)
    return known[id(value)]


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """``values`` with every ``a.b=value`` put in; values are read as YAML."""
    for text in overrides:
        dotted, equals, raw = text.partition("=")
        if not equals or not dotted:
            raise UserError(f"'{text}' is not an override: write option=value, e.g. optim.lr=2e-4")
        try:
            value = yaml.safe_load(raw) if raw else ""
        except (ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: a date such as 2001-99-99
            raise UserError(f"the value of override '{text}' cannot be read as YAML") from error
        *parents, leaf = dotted.split(".")
        node = values
        for parent in parents:
            if node.get(parent) is None:  # absent, or a section that the preset leaves empty
                node[parent] = {}
            child = node[parent]
            if not isinstance(child, dict):
                raise UserError(f"override '{text}' goes into '{parent}', which has no options of its own")
            node = child
        node[leaf] = _NumberAsWritten(raw) if type(value) in (int, float) else value
    return values


def find_preset(name: str, folder: Path, families: bool = False) -> Path:
    """The YAML file of a preset: a name in ``folder`` or the path of a file of one's own.

    With ``families``, where there is no ``a_b.yaml`` the family's ``a.yaml`` serves.
    """
    own = Path(name)
    if own.suffix in (".yaml", ".yml"):
        if not own.is_file():
            raise UserError(f"there is no preset file {own}")
        return own
    path, stem = folder / f"{name}.yaml", name
    while families and not path.is_file() and "_" in stem:
        stem = stem.rsplit("_", 1)[0]
        path = folder / f"{stem}.yaml"
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
    values = read_yaml(path)
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


def list_options(cls: type, where: str = "") -> list[tuple[str, Any, str]]:
    """``(dotted name, default, meaning)`` of every leaf of a config tree."""
    hints, rows = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        dotted = f"{where}.{field.name}" if where else field.name
        if dataclasses.is_dataclass(hints[field.name]):
            rows += list_options(hints[field.name], dotted)
        else:
            rows.append((dotted, field.default, field.metadata.get("help", "")))
    return rows


def changed_options(cls: type, old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[str]:
    """``name: old -> new`` for every differing option that changes a run's result.

    An option that ``old`` does not have yet counts as what held before it was one, and sections of a registry that are not chosen do not count.
    """
    hints, rows = typing.get_type_hints(cls), []
    selector = getattr(cls, "SELECTOR", None)
    chosen = str(new.get(selector)).split("+")
    for field in dataclasses.fields(cls):
        if selector and dataclasses.is_dataclass(hints[field.name]) and field.name not in chosen:
            continue
        default = _plain(field.default) if field.default is not dataclasses.MISSING else None
        unwritten = field.metadata.get("before")
        before = old.get(field.name, default if unwritten is None else unwritten)
        after = new.get(field.name, default)
        dotted = f"{where}.{field.name}" if where else field.name
        if not field.metadata.get("changes_result", True):
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            rows += changed_options(hints[field.name], before or {}, after or {}, dotted)
        elif before != after:
            rows.append(f"{dotted}: {before} -> {after}")
    return rows


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values (tuples become lists), as YAML and JSON write them."""

    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def registry_section(
    name: str, selector: str, default: str, registry: dict[str, type], help: str, several: bool = False
) -> type:
    """A config section that chooses from a registry, with a sub-section of options for each entry.

    Args:
        name: of the dataclass that is made.
        selector: the option that chooses, ``name`` say.
        default: its default.
        registry: config dataclass by entry.
        help: of the selector.
        several: entries may be joined by ``+``, and ``none`` stands for none of them.
    """
    options = ", ".join(registry)

    def check(self: Any) -> None:
        value = getattr(self, selector)
        words = value.split("+") if several and value != "none" else [] if several else [value]
        if set(words) - set(registry) or len(set(words)) != len(words):
            raise ValueError(
                f"{selector} is {f'none, or one or more of {options} joined by +' if several else f'one of {options}'}, not '{value}'"
            )

    fields = [
        (selector, str, option(default, f"{help}: {'none, or some joined by + of' if several else 'one of'} {options}"))
    ]
    fields += [(entry, config, dataclasses.field(default_factory=config)) for entry, config in registry.items()]
    return dataclasses.make_dataclass(
        name, fields, namespace={"__post_init__": check, "SELECTOR": selector, "__doc__": help}
    )


def config_from_command_line(
    cls: type[C], presets: Path, description: str, argv: list[str] | None = None, families: bool = False
) -> C:
    """The config that a command line asks for: ``[--preset NAME] [option=value ...]``; ``--help`` prints every field.

    ``run_dir``, which every stage's config has, is ``runs/<preset>`` unless it is given. A yes-or-no option of the top level, ``dry_run`` say,
    is also a flag, ``--dry-run``.
    """
    width = max(len(name) for name, _, _ in list_options(cls))
    fields = "\n".join(f"  {name:<{width}}  {meaning} [{default}]" for name, default, meaning in list_options(cls))
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"options, with their defaults before the preset is applied:\n{fields}",
    )
    parser.add_argument(
        "--preset", default="digits", help=f"a name in {presets.parent.name}/{presets.name}, or a .yaml file [digits]"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="option=value", help="dotted overrides, e.g. optim.lr=2e-4 train.steps=1000"
    )
    for field in dataclasses.fields(cls):
        if typing.get_type_hints(cls)[field.name] is bool:
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", action="store_true", help=field.metadata.get("help", "")
            )
    parser.error = lambda message: (_ for _ in ()).throw(UserError(f"{message} (--help lists every option)"))  # type: ignore
    arguments = parser.parse_intermixed_args(sys.argv[1:] if argv is None else argv)
    preset = find_preset(arguments.preset, presets, families)
    values = apply_overrides(read_preset(preset, presets), arguments.overrides)
    values |= {name: True for name, given in vars(arguments).items() if given is True}
    values.setdefault("run_dir", f"runs/{Path(arguments.preset).stem}")
    return build_config(cls, values)
