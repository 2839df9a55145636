"""Configs: a dataclass tree, a YAML preset over its defaults, and dotted overrides over both. Unknown keys are refused."""

from __future__ import annotations

import dataclasses
import difflib
import operator
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from flowprior.errors import UserError
from flowprior.run.written import Written, WrittenFloat, WrittenInt, WrittenSection, as_written, read_written

C = TypeVar("C")
AS_DEFAULT = object()
BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    changes_result: bool = True,
    before: Any = AS_DEFAULT,
    formerly: str = "",
    former_words: dict[str, str] | None = None,
) -> Any:
    """A dataclass field with its meaning for ``--help``.

    Args:
        default: the value, or a dataclass type for a nested section.
        help: one line.
        least, above, most, below: bounds of a number in a :class:`Section`: at least, above, at most, below.
        changes_result: False for what may differ when a run is resumed (logging, data loading).
        before: what a run counts as whose config lacks the option, where that is not the default: a value, or words for what no value gives.
        formerly: the option's name in configs of earlier versions, which are still read; a person is told the present one.
        former_words: values of earlier versions and what stands for them today; both are read everywhere.
    """
    metadata = {
        "help": help,
        "least": least,
        "above": above,
        "most": most,
        "below": below,
        "changes_result": changes_result,
        "formerly": formerly,
        "former_words": former_words or {},
    }
    if before is not AS_DEFAULT:
        metadata["before"] = before
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Section:
    """What a config dataclass is based on whose numbers have bounds; one outside of them is a ``ValueError``."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            for name, (holds, words) in BOUNDS.items():
                bound = field.metadata.get(name)
                if bound is not None and not holds(value, bound):
                    raise ValueError(f"{field.name} is {words} {bound:g}, not {value}")


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
    for key, value in _renamed(cls, values, where).items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in known:
            if isinstance(value, dict) and (selector := getattr(cls, "SELECTOR", None)):
                there = ", ".join(f"{where}.{name}" for name in hints if name != selector)
                raise UserError(f"config has no section '{dotted}': there is {there} (--help lists all options)")
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


def _renamed(cls: type, values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """``values`` of a config with the options' present names and words.

    Raises:
        UserError: a person wrote the former name, in an override or as a number of a preset.
    """
    present = {name: field.name for field in dataclasses.fields(cls) if (name := field.metadata.get("formerly"))}
    for key in present.keys() & values.keys():
        if isinstance(values[key], (Written, WrittenSection, WrittenInt, WrittenFloat)):
            section = f"{where}." if where else ""
            raise UserError(
                f"option '{section}{key}' is called '{section}{present[key]}': write {section}{present[key]}="
            )
    words = {field.name: field.metadata.get("former_words") or {} for field in dataclasses.fields(cls)}
    renamed = {present.get(key, key): value for key, value in values.items()}
    return {
        key: words[key].get(value, value) if isinstance(value, str) and key in words else value
        for key, value in renamed.items()
    }


def _coerce(hint: Any, value: Any, dotted: str) -> Any:
    """``value`` as the annotated type, where that loses nothing."""
    if isinstance(value, (Written, WrittenSection)):
        value = read_written(hint, value, dotted)
    if dataclasses.is_dataclass(hint):
        return build_config(hint, value if value is not None else {}, dotted)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _coerce(next(a for a in arguments if a is not type(None)), value, dotted)
    if origin is Literal:
        if value not in arguments:
            quotes = (
                " (yes and no are true and false in a YAML file, unless in quotes)" if isinstance(value, bool) else ""
            )
            raise UserError(f"option '{dotted}' is one of {', '.join(map(str, arguments))}, not {value!r}{quotes}")
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
                return int(value)
            if float(value) == int(float(value)):
                return int(float(value))
        if hint is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(getattr(value, "text", value))
        if hint is bool and isinstance(value, bool):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word (in quotes, in a YAML file)"}
    raise UserError(f"option '{dotted}' is {names.get(hint, hint)}, not {value!r}")


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """``values`` with every ``a.b=value`` put in, as it is written: :func:`build_config` reads it once it knows the option's type."""
    for text in overrides:
        dotted, equals, raw = text.partition("=")
        if not equals or not dotted:
            raise UserError(f"'{text}' is not an override: write option=value, e.g. optim.lr=2e-4")
        *parents, leaf = dotted.split(".")
        node = values
        for parent in parents:
            if node.get(parent) is None:  # absent, or a section that the preset leaves empty
                node[parent] = {}
            child = node[parent]
            if isinstance(child, WrittenSection):  # no longer what was written
                child = node[parent] = dict(child)
            if not isinstance(child, dict):
                raise UserError(f"override '{text}' goes into '{parent}', which has no options of its own")
            node = child
        node[leaf] = as_written(raw)
    return values


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

    An option that ``old`` does not have yet counts as its default, or as what :func:`option` was told of. Sections of a registry that are
    not chosen do not count, nor one whose ``SWITCH``, the name of an option of it, is 0 in both.
    """
    hints, rows, old = typing.get_type_hints(cls), [], _renamed(cls, old)
    selector, switch = getattr(cls, "SELECTOR", None), getattr(cls, "SWITCH", None)
    if switch and not (old.get(switch) or new.get(switch)):
        return []
    chosen = str(new.get(selector)).split("+")
    for field in dataclasses.fields(cls):
        if selector and dataclasses.is_dataclass(hints[field.name]) and field.name not in chosen:
            continue
        default = _plain(field.default) if field.default is not dataclasses.MISSING else None
        later = field.name not in old and "before" in field.metadata
        before = field.metadata["before"] if later else old.get(field.name, default)
        after = new.get(field.name, default)
        dotted = f"{where}.{field.name}" if where else field.name
        if not field.metadata.get("changes_result", True):
            continue
        if dataclasses.is_dataclass(hints[field.name]):
            rows += changed_options(hints[field.name], before or {}, after or {}, dotted)
        elif before != after:
            goes_on = later and not isinstance(before, str)
            hint = f", where {dotted}={str(before).lower()} goes on with it" if goes_on else ""
            rows.append(f"{dotted}: {before} -> {after}{hint}")
    return rows


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain values (tuples become lists), as YAML and JSON write them."""

    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def registry_section(
    name: str,
    selector: str,
    default: str,
    registry: dict[str, type],
    help: str,
    several: bool = False,
    elsewhere: dict[str, str] | None = None,
) -> type:
    """A config section that chooses from a registry, with a sub-section of options for each entry.

    Its ``chosen`` is the list of the sub-sections that the selector names, in its order.

    Args:
        name: of the dataclass that is made.
        selector: the option that chooses, ``name`` say.
        default: its default.
        registry: config dataclass by entry.
        help: of the selector.
        several: entries may be joined by ``+``, and ``none`` stands for none of them.
        elsewhere: the command that has an entry, by entries that are not in this registry.
    """
    options = ", ".join(registry)

    def words_of(self: Any) -> list[str]:
        value = getattr(self, selector)
        return value.split("+") if several and value != "none" else [] if several else [value]

    def check(self: Any) -> None:
        value, words = getattr(self, selector), words_of(self)
        for word in set(words) - set(registry):
            if word in (elsewhere or {}):
                raise ValueError(f"{selector}={value} is not of this command: run `{elsewhere[word]}`")
        if set(words) - set(registry) or len(set(words)) != len(words):
            raise ValueError(
                f"{selector} is {f'none, or one or more of {options} joined by +' if several else f'one of {options}'}, not '{value}'"
            )

    fields = [
        (selector, str, option(default, f"{help}: {'none, or some joined by + of' if several else 'one of'} {options}"))
    ]
    fields += [(entry, config, dataclasses.field(default_factory=config)) for entry, config in registry.items()]
    chosen = property(lambda self: [getattr(self, word) for word in words_of(self)])
    namespace = {"__post_init__": check, "SELECTOR": selector, "chosen": chosen, "__doc__": help}
    return dataclasses.make_dataclass(name, fields, namespace=namespace)
