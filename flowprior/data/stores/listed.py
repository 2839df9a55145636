"""A list of paths and labels: CSV or TSV, with or without a row of names, or JSON lines."""

from __future__ import annotations

import csv
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowprior.data.stores.base import StoreOptions
from flowprior.data.stores.files import FilesStore
from flowprior.data.stores.folder_listing import EXTENSIONS
from flowprior.data.stores.labels import (
    LABEL_NAMES,
    NO_LABEL,
    WrittenLabels,
    choose_column,
    classes_of_words,
    written_label,
)
from flowprior.errors import UserError, one_line
from flowprior.notes import note

PATH_NAMES = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = {*DELIMITERS, ".jsonl", ".ndjson"}


class _Row(NamedTuple):
    number: int  # of the line, from 1
    path: str
    label: str  # empty where there is none
    source: str  # column of the labels, in words
    images_from: str = ""  # column of the paths, where it was guessed


class ListStore(FilesStore):
    """The images that a list names, in its order; paths are below the list's folder unless they are absolute.

    Args:
        files: the list, alone.
        where: what a person named.
        options: names of the columns.

    Raises:
        UserError: a row cannot be read, a column is missing or might be one of several, or the first image is not there.
    """

    kind = "list"

    def __init__(self, files: list[Path], where: str, options: StoreOptions) -> None:
        if len(files) > 1:
            raise UserError(f"{where} stands for {len(files)} lists: join them into one")
        self.root, self.where = files[0].parent, where
        names, ends, labels, hashes = bytearray(), array("q"), WrittenLabels(), array("q")
        first_without, source, images_from = 0, "", ""
        for row in _rows(files[0], options):
            source, images_from = row.source, row.images_from
            if "\0" in row.path:
                raise UserError(f"line {row.number} of the list {where} has a null byte in its path")
            names += os.fsencode(row.path)
            ends.append(len(names))
            labels.add(row.label)
            hashes.append(hash(row.path))
            first_without = first_without or (0 if row.label else row.number)
        if not ends:
            raise UserError(f"the list {where} names no images")
        self.names, self.ends = np.frombuffer(bytes(names), np.uint8), np.array(ends)
        words, codes = list(labels.words), np.array(labels.codes)
        classes = classes_of_words(
            words,
            np.bincount(codes),
            source,
            where,
            f"row {first_without}",
            guessed=options.label_column in ("", NO_LABEL),
            images_from=images_from,
        )
        self.class_names, self.labels = classes.names, classes.places[codes]
        for line in classes.notes:
            note(line)
        if twice := len(hashes) - len(np.unique(hashes)):
            note(f"{where} names {twice} images more than once: they are read as often")
        self.statuses(0, 1)

    def member(self, index: int) -> str:
        return os.fsdecode(self.names[self.ends[index - 1] if index else 0 : self.ends[index]].tobytes())


def _rows(file: Path, options: StoreOptions) -> Iterator[_Row]:
    """The rows of a list; a :class:`UserError` that names the line that cannot be read."""
    lines = _of_json(file, options) if file.suffix.lower() not in DELIMITERS else _of_table(file, options)
    try:
        yield from lines
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"the list {file} cannot be read ({one_line(error)})") from error


def _of_table(file: Path, options: StoreOptions) -> Iterator[_Row]:
    with open(file, newline="", encoding="utf-8-sig") as opened:
        rows = csv.reader(opened, delimiter=DELIMITERS[file.suffix.lower()], strict=True)
        header: list[str] | None = None
        for cells in rows:
            if not cells:
                continue
            if header is None:
                path, label, header = _columns_of_table(cells, file, options)
                if header:
                    continue
            if len(cells) <= max(path, label if label is not None else 0) or not cells[path]:
                raise UserError(f"the list {file} has no path or no label in line {rows.line_num}")
            named = [f"column '{name}'" for name in header] or [f"column {place}" for place in (1, 2)]
            images_from = "" if options.image_column else named[path]
            if label is None:
                yield _Row(rows.line_num, cells[path], "", "", images_from)
            else:
                yield _Row(rows.line_num, cells[path], cells[label].strip(), named[label], images_from)


def _columns_of_table(first: list[str], file: Path, options: StoreOptions) -> tuple[int, int | None, list[str]]:
    """Which columns are path and label, and the names of all; none where the first row is an image's own."""
    where, names = f"the list {file}", [name.strip() for name in first]
    paths = [place for place, cell in enumerate(first) if os.path.splitext(cell)[1].lower() in EXTENSIONS]
    if not paths or options.image_column in names:
        path = choose_column(names, options.image_column, PATH_NAMES, where, "data.image_column", needed=True)
        label = choose_column(names, options.label_column, LABEL_NAMES, where, "data.label_column")
        return names.index(path), names.index(label) if label else None, names
    asked_for = options.image_column or (options.label_column if options.label_column != NO_LABEL else "")
    if asked_for or len(paths) > 1 or len(first) > 2:
        raise UserError(
            f"{where} has {len(first)} columns and no row of their names: begin it with one, such as path,label"
        )
    return paths[0], 1 - paths[0] if len(first) == 2 and options.label_column != NO_LABEL else None, []


def _of_json(file: Path, options: StoreOptions) -> Iterator[_Row]:
    path = label = ""
    with open(file, encoding="utf-8-sig") as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"line {number} of the list {file} is no JSON ({one_line(error)})") from error
            if not isinstance(fields, dict):
                raise UserError(f"line {number} of the list {file} is no JSON object")
            if not path:
                where, names = f"the list {file}", list(fields)
                path = choose_column(names, options.image_column, PATH_NAMES, where, "data.image_column", needed=True)
                label = choose_column(names, options.label_column, LABEL_NAMES, where, "data.label_column")
            if not isinstance(fields.get(path), str) or not fields[path]:
                there = ", ".join(fields) or "none"
                raise UserError(
                    f"line {number} of the list {file} has no '{path}' that is a path; its fields are {there}"
                )
            yield _Row(
                number,
                fields[path],
                written_label(fields.get(label), f"'{label}' in line {number} of {file}") if label else "",
                f"column '{label}'",
                "" if options.image_column else f"column '{path}'",
            )
