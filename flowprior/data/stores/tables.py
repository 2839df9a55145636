"""Which column of an Arrow table holds the images and which the labels, and the classes that the labels stand for."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowprior.data.stores.base import StoreOptions
from flowprior.data.stores.labels import LABEL_NAMES, NO_LABEL, Classes, classes_of_words, origin, unlabelled
from flowprior.errors import UserError, one_line

if TYPE_CHECKING:
    import pyarrow

IMAGE_OPTION, LABEL_OPTION = "data.image_column", "data.label_column"
INSTALL = "install it by `pip install pyarrow`"


def import_pyarrow() -> Any:
    """The library, with what reads Parquet and computes; a :class:`UserError` that says what to install where it is missing."""
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"Parquet files and saved data sets are read by pyarrow, which is not there: {INSTALL}"
        ) from error
    return pyarrow


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Within, whatever a damaged file makes pyarrow raise becomes a mistake that names ``what``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pyarrow's own, those of Python's codecs, and the system's
        raise UserError(f"{what} cannot be read ({one_line(error)}): get or make it again") from error


class TableColumns(NamedTuple):
    """What is what in a table.

    Attributes:
        image: column of encoded images: bytes, or Hugging Face's structs of bytes and path.
        label: column of labels; empty where there is none.
        class_names: those that the table itself keeps; None where it keeps none.
        guessed: whether nobody has named the column of images.
    """

    image: str
    label: str
    class_names: list[str] | None
    guessed: bool = True


def choose_columns(schema: pyarrow.Schema, options: StoreOptions, where: str) -> TableColumns:
    """The columns that the options name, or the only ones that can be meant.

    Raises:
        UserError: a column is not there or of another type, several can be meant, or none holds images.
    """
    features = _features(schema)
    image, label = _image_column(schema, features, options, where), _label_column(schema, features, options, where)
    return TableColumns(image, label, _class_names(features).get(label), guessed=not options.image_column)


def check_classes(schema: pyarrow.Schema, file: Path, of: pyarrow.Schema, first: Path) -> None:
    """Refuses a file in which a number stands for another class than in the first one; names of classes are beside the columns."""
    here, there = _class_names(_features(schema)), _class_names(_features(of))
    if other := [column for column in {**here, **there} if here.get(column) != there.get(column)]:
        raise UserError(
            f"the classes of the column '{other[0]}' have other names in {file} than in {first.name}: name files of one data set"
        )


def _image_column(schema: pyarrow.Schema, features: dict[str, Any], options: StoreOptions, where: str) -> str:
    possible = [field.name for field in schema if _holds_bytes(field.type)]
    marked = [name for name in possible if features.get(name, {}).get("_type") == "Image"]
    image = _chosen(schema, options.image_column, marked or possible, "images", IMAGE_OPTION, where)
    if not image:
        columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise UserError(
            f"none of the columns of {where} holds images in bytes ({columns}): write the encoded files (JPEG, PNG) into a column of bytes, "
            "or name other files"
        )
    if image not in possible:
        there = f"{IMAGE_OPTION}={possible[0]}, say" if possible else "the encoded files into a column of bytes"
        raise UserError(
            f"the column '{image}' of {where} holds {schema.field(image).type}, and no images in bytes: write {there}"
        )
    return image


def _label_column(schema: pyarrow.Schema, features: dict[str, Any], options: StoreOptions, where: str) -> str:
    if options.label_column == NO_LABEL:
        return ""
    marked = [name for name, about in features.items() if about.get("_type") == "ClassLabel" and name in schema.names]
    usual = [name for name in schema.names if name.lower() in LABEL_NAMES]
    label = _chosen(schema, options.label_column, marked or usual, "labels", LABEL_OPTION, where)
    if label and not _may_be_label(schema.field(label).type):
        raise UserError(
            f"the column '{label}' of {where} holds {schema.field(label).type}, and no whole numbers or words: write "
            f"{LABEL_OPTION}={NO_LABEL}, or name another"
        )
    return label


def _features(schema: pyarrow.Schema) -> dict[str, dict[str, Any]]:
    """What Hugging Face's library wrote of the columns; nothing where it did not write them."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _class_names(features: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """The names that Hugging Face's library wrote of the columns' classes."""
    named = {column: about.get("names") for column, about in features.items()}
    return {column: list(map(str, names)) for column, names in named.items() if isinstance(names, list) and names}


def _chosen(schema: pyarrow.Schema, asked_for: str, found: Sequence[str], what: str, option: str, where: str) -> str:
    if asked_for:
        if asked_for not in schema.names:
            raise UserError(f"{where} has no column '{asked_for}' ({option}) but {', '.join(schema.names)}")
        return asked_for
    if len(found) > 1:
        raise UserError(
            f"{where} has the columns {', '.join(found)}, each of which may hold the {what}: write {option}={found[0]}, say"
        )
    return found[0] if found else ""


def _is_binary(kind: pyarrow.DataType) -> bool:
    types = import_pyarrow().types
    return types.is_binary(kind) or types.is_large_binary(kind)


def _holds_bytes(kind: pyarrow.DataType) -> bool:
    return _is_binary(kind) or (
        import_pyarrow().types.is_struct(kind) and any(f.name == "bytes" and _is_binary(f.type) for f in kind)
    )


def _may_be_label(kind: pyarrow.DataType) -> bool:
    types = import_pyarrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)


def bytes_of(column: pyarrow.Array) -> pyarrow.Array:
    """The encoded images of a column; null for those that the table only names."""
    return column if _is_binary(column.type) else column.flatten()[column.type.get_field_index("bytes")]


def first_without_bytes(column: pyarrow.Array) -> int:
    """The first row without an encoded image; -1 where every row has one."""
    data = bytes_of(column)
    return int(np.argmax(data.is_null().to_numpy(zero_copy_only=False))) if data.null_count else -1


def image_bytes(image: pyarrow.Scalar, name: str, follows_paths: bool = False) -> bytes:
    """The encoded image in a cell of such a column.

    Args:
        image: the cell.
        name: of the image, for a message.
        follows_paths: whether a cell may name a file in place of its bytes.

    Raises:
        UserError: the cell is empty, or names a file that is not read.
    """
    value = image.as_py()
    if isinstance(value, bytes):
        return value
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
    if data is not None:
        return data
    if not path:
        raise UserError(f"the image {name} is missing: its cell is empty")
    if not follows_paths:
        raise UserError(f"the image {name} is not in the table, which names {path} alone: write the bytes into it")
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"the image {name} lies in {path}, which cannot be read ({one_line(error)})") from error


class TableLabels:
    """The labels of a table as they are added chunk by chunk: which words there are, and which of them each sample has."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.codes: list[np.ndarray] = []
        self.first_without = -1

    def add(self, column: pyarrow.Array) -> None:
        """A chunk of the column."""
        pyarrow = import_pyarrow()
        if not pyarrow.types.is_dictionary(column.type):
            column = column.dictionary_encode(null_encoding="encode")
        words = ["" if word is None else str(word).strip() for word in column.dictionary.to_pylist()]
        into = np.array([self.words.setdefault(word, len(self.words)) for word in words] or [0], np.int32)
        indices = column.indices
        codes = into[indices.fill_null(0).to_numpy(zero_copy_only=False)]
        if indices.null_count:  # of a column that was in codes already
            codes[indices.is_null().to_numpy(zero_copy_only=False)] = self.words.setdefault("", len(self.words))
        if self.first_without < 0 and "" in self.words and (missing := np.flatnonzero(codes == self.words[""])).size:
            self.first_without = sum(map(len, self.codes)) + int(missing[0])
        self.codes.append(codes)

    def classes(
        self, columns: TableColumns, where: str, count: int, guessed: bool, name: Callable[[int], str]
    ) -> tuple[list[str], np.ndarray, list[str]]:
        """Names of the classes, labels ``(N,)`` int32, and what a person should know of them; ``name`` says where a row lies."""
        images_from = f"column '{columns.image}'" if columns.guessed else ""
        if not columns.label:
            made = unlabelled(where, count, 1, images_from=images_from)
            return made.names, np.zeros(count, np.int32), made.notes
        codes, words, source = np.concatenate(self.codes), list(self.words), f"column '{columns.label}'"
        if len(codes) != count:
            raise UserError(f"{where} holds {count} images and {len(codes)} labels: get or make it again")
        counts = np.bincount(codes, minlength=len(words))
        words, counts, codes = _used(words, counts, codes)
        first_without = name(self.first_without) if self.first_without >= 0 else ""
        made = classes_of_words(words, counts, source, where, first_without, guessed, images_from)
        if columns.class_names is not None and made.names and all(word.isdecimal() for word in words):
            places = _named_places(words, columns.class_names, source, where)
            said = origin(where, count, len(columns.class_names), source, images_from)
            made = Classes(columns.class_names, places, [said])
        return made.names, made.places[codes], made.notes


def _used(words: list[str], counts: np.ndarray, codes: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Without words that no sample has, which a table in codes may bring."""
    places = np.cumsum(counts > 0) - 1
    return [word for word, count in zip(words, counts) if count], counts[counts > 0], places[codes]


def _named_places(words: list[str], names: list[str], source: str, where: str) -> np.ndarray:
    """The numbers of classes whose names the table keeps, int32."""
    places = list(map(int, words))
    if max(places) >= len(names):
        raise UserError(f"the labels of {where} ({source}) go up to {max(places)}, and it names {len(names)} classes")
    return np.array(places, np.int32)
