"""Values as a person wrote them: they are read once the type that is wanted is known, so that a path or a name is never parsed."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import yaml

from flowprior.errors import UserError, one_line

LARGEST_YAML_BYTES = 1 << 20
FLOAT_WORDS = {"inf": "inf", "+inf": "inf", "-inf": "-inf", "nan": "nan"}
YES_OR_NO = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NULLS = {"", "~", "null", "Null", "NULL"}


class Written(str):
    """A value of a command line, unread: ``010`` is a folder's name or a number, ``no`` a word or an answer."""


class WrittenSection(dict):
    """``{a: 1}`` on a command line: a section's options, or a word in braces where a word is wanted."""

    def __init__(self, options: dict[str, Any], text: str) -> None:
        super().__init__(options)
        self.text = text


class WrittenInt(int):
    """A whole number of a preset, whose ``text`` counts where a word is wanted."""

    text: str


class WrittenFloat(float):
    """A number of a preset, whose ``text`` counts where a word is wanted."""

    text: str


class NumbersAsWritten(yaml.SafeLoader):
    """YAML whose numbers remember how they were written: ``run_dir: 010`` names a folder."""


def _remembered(kind: type) -> Callable[[yaml.SafeLoader, yaml.ScalarNode], Any]:
    plain = yaml.SafeLoader.yaml_constructors[f"tag:yaml.org,2002:{kind.__mro__[1].__name__}"]

    def construct_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> Any:
        number = kind(plain(loader, node))
        number.text = node.value
        return number

    return construct_number


NumbersAsWritten.add_constructor("tag:yaml.org,2002:int", _remembered(WrittenInt))
NumbersAsWritten.add_constructor("tag:yaml.org,2002:float", _remembered(WrittenFloat))


class AsWritten(yaml.SafeLoader):
    """YAML whose plain words stay :class:`Written`: no dates, numbers, or yes and no. Quoted words are words."""


AsWritten.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, form) for tag, form in resolvers if tag.rsplit(":", 1)[-1] in ("merge", "null")])
}


def _word(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return Written(node.value) if node.style is None else node.value


AsWritten.add_constructor("tag:yaml.org,2002:str", _word)


def construct(text: str, loader: type[yaml.SafeLoader]) -> Any:
    """The value in a YAML text; raises ValueError, RecursionError or yaml.YAMLError where there is none."""
    reader = loader(text)
    try:
        return reader.get_single_data()
    finally:
        reader.dispose()


def as_written(text: str) -> Written | WrittenSection:
    """What an override says: a section of options where that is what stands in the braces, and else its text."""
    if text.lstrip().startswith("{"):
        try:
            options = _flow(text)
        except ValueError:
            return Written(text)
        if isinstance(options, dict):
            return WrittenSection(options, text)
    return Written(text)


def read_written(hint: Any, value: Written | WrittenSection, dotted: str) -> Any:
    """``value`` as what a config's field of type ``hint`` is made from; words that are no such thing stay words, which are refused later.

    Raises:
        UserError: a list or a section is wanted and cannot be read.
    """
    text = value.text if isinstance(value, WrittenSection) else str(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and text in NULLS and (text or str not in arguments):
            return None
        return read_written(next(one for one in arguments if one is not type(None)), value, dotted)
    if origin is Literal:
        return next((one for one in arguments if str(one) == text), text)
    if hint is str:
        return text
    if isinstance(value, WrittenSection):
        return dict(value)
    if hint is bool:
        return YES_OR_NO.get(text.lower(), text)
    if hint in (int, float):
        return _number(text)
    if text in NULLS:
        return None
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return _flow(text)
    except ValueError as error:
        raise UserError(f"the value of '{dotted}' cannot be read as YAML: {text!r}") from error


def _number(text: str) -> int | float | str:
    """Decimal numbers with or without exponent; the text itself where it is none."""
    for read in (int, float):
        try:
            return read(FLOAT_WORDS.get(text.strip().lower().replace(".", "", 1), text))
        except ValueError:
            continue
    return text


def _flow(text: str) -> Any:
    """A list or mapping in brackets, its words as written.

    Raises:
        ValueError: it is none, or something stands behind it, which YAML would take for a comment.
    """
    try:
        value = construct(text, AsWritten)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from error
    if isinstance(value, (dict, list)) and not text.rstrip().endswith(("]", "}")):
        raise ValueError("something stands behind the brackets")
    return value


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> dict[str, Any]:
    """The mapping in a YAML file, constructed by ``loader``; a :class:`UserError` if there is none."""
    try:
        if path.stat().st_size > LARGEST_YAML_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        values = construct(path.read_text(), loader)
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
