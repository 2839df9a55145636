"""Parquet files with a column of encoded images. What is read at once is a row group, the last few of which are kept."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowprior.data.stores.base import ImageStore, StoreOptions
from flowprior.data.stores.index import index_made_from
from flowprior.data.stores.labels import NO_LABEL
from flowprior.data.stores.shard_files import FileStamp
from flowprior.data.stores.tables import TableLabels, choose_columns, image_bytes, import_pyarrow, reading
from flowprior.errors import UserError
from flowprior.notes import note

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

LARGEST_GROUP = 1 << 30  # bytes of images that are read at once
GROUPS_LOOKED_AT = 64
GROUPS_MIXED = 4  # at a time, in training
FEWEST_KEPT, FILES_OPEN = 2, 8


class ParquetStore(ImageStore):
    """Images in Parquet files.

    Args:
        files: in the images' order.
        where: what a person named.
        options: names of the columns.

    Raises:
        UserError: pyarrow is not there, a file is damaged, its columns are others, or its row groups are too large.
    """

    kind, part, mixed = "parquet", "row group", GROUPS_MIXED

    def __init__(self, files: list[Path], where: str, options: StoreOptions) -> None:
        self.files, self.where, self.home = files, where, files[0].parent
        labels, rows, self.group_of, self.group_facts = TableLabels(), list[int](), list[tuple[int, int]](), list[str]()
        with reading(f"the Parquet file {files[0]}"):
            schema = _footer(files[0]).schema_arrow
            self.columns = choose_columns(schema, options, where)
        for number, file in enumerate(files):
            with reading(f"the Parquet file {file}"):
                read = _footer(file)
                self._check(file, read, schema)
                for group in range(read.metadata.num_row_groups):
                    about = read.metadata.row_group(group)
                    if about.num_rows:
                        rows.append(about.num_rows)
                        self.group_of.append((number, group))
                        self.group_facts.append(_facts(about))
                for chunk in self._label_chunks(read):
                    labels.add(chunk)
        if not rows:
            raise UserError(f"{where} holds no rows")
        self.ends = np.cumsum(rows)
        guessed = options.label_column in ("", NO_LABEL)
        self.class_names, self.labels, notes = labels.classes(self.columns, where, int(self.ends[-1]), guessed)
        for line in notes:
            note(line)
        self._begin()

    def _label_chunks(self, read: pyarrow.parquet.ParquetFile) -> list[pyarrow.Array]:
        return read.read(columns=[self.columns.label], use_threads=False).column(0).chunks if self.columns.label else []

    def _begin(self) -> None:
        self.process, self.lock = os.getpid(), threading.RLock()
        self.kept, self.opened = OrderedDict[int, Any](), OrderedDict[int, Any]()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("lock", "kept", "opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _check(self, file: Path, read: pyarrow.parquet.ParquetFile, schema: pyarrow.Schema) -> None:
        for column in filter(None, (self.columns.image, self.columns.label)):
            kind = read.schema_arrow.field(column).type if column in read.schema_arrow.names else "nothing"
            if kind != schema.field(column).type:
                raise UserError(
                    f"{file} has {kind} in the column '{column}', and {self.files[0].name} {schema.field(column).type}"
                )
        for group in range(read.metadata.num_row_groups):
            about = read.metadata.row_group(group)
            chunks = (about.column(number) for number in range(about.num_columns))
            size = sum(
                c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == self.columns.image
            )
            if size > LARGEST_GROUP:
                raise UserError(
                    f"row group {group} of {file} holds {size / 1e9:.1f} GB of images, all of which is read for any of them: write the files anew "
                    "with smaller row groups, such as row_group_size=100"
                )

    @property
    def starts(self) -> np.ndarray:
        return np.append(0, self.ends[:-1])

    def name(self, index: int) -> str:
        group = int(np.searchsorted(self.ends, index, side="right"))
        number, in_file = self.group_of[group]
        row = index - int(self.starts[group])
        return f"{self.files[number]}: row {row} of row group {in_file}"

    def read(self, index: int) -> bytes:
        group = int(np.searchsorted(self.ends, index, side="right"))
        column = self._group(group)
        return image_bytes(column[index - int(self.ends[group]) + len(column)], self.name(index), self.home)

    def _group(self, group: int) -> pyarrow.ChunkedArray:
        """The images of a row group."""
        if self.process != os.getpid():
            self._begin()
        with self.lock:
            if group in self.kept:
                self.kept.move_to_end(group)
                return self.kept[group]
            number, in_file = self.group_of[group]
            with reading(f"the Parquet file {self.files[number]}, row group {in_file},"):
                read = self._open(number).read_row_group(in_file, columns=[self.columns.image], use_threads=False)
                if len(read) != self.ends[group] - self.starts[group]:
                    raise ValueError(f"{len(read)} rows in place of {self.ends[group] - self.starts[group]}")
            while len(self.kept) >= max(FEWEST_KEPT, self.mixed):
                self.kept.popitem(last=False)
            self.kept[group] = read.column(0)
            return self.kept[group]

    def _open(self, number: int) -> pyarrow.parquet.ParquetFile:
        if number not in self.opened:
            if len(self.opened) >= FILES_OPEN:
                self.opened.popitem(last=False)
            self.opened[number] = _footer(self.files[number])
        self.opened.move_to_end(number)
        return self.opened[number]

    def lengths(self, first: int, end: int) -> None:
        return None

    def facts(self, first: int, end: int) -> list[str]:
        """Rows and bytes of the row groups that begin here."""
        begin = np.searchsorted(self.starts, [first, end])
        return self.group_facts[slice(*begin.tolist())]

    def stamp(self) -> str:
        stamps = [FileStamp.of(file.stat()) for file in self.files]
        return index_made_from(self.kind, zip((file.name for file in self.files), stamps), self.columns)

    def spread(self, most: int) -> np.ndarray:
        """Of few row groups, which are read as wholes."""
        starts, groups = self.starts, len(self.ends)
        wanted = min(groups, max(GROUPS_LOOKED_AT, -(-most * groups // len(self))))
        chosen = np.unique(np.linspace(0, groups - 1, wanted).astype(np.int64))
        each = max(1, most // len(chosen))
        parts = [np.linspace(starts[g], self.ends[g] - 1, min(each, int(self.ends[g] - starts[g]))) for g in chosen]
        return np.unique(np.concatenate(parts).astype(np.int64))[:most]


def _footer(file: Path) -> pyarrow.parquet.ParquetFile:
    pyarrow = import_pyarrow()
    with reading(f"the Parquet file {file}"):
        return pyarrow.parquet.ParquetFile(file, pre_buffer=False)


def _facts(group: pyarrow.parquet.RowGroupMetaData) -> str:
    columns = (group.column(number) for number in range(group.num_columns))
    return f"{group.num_rows} rows " + " ".join(
        f"{c.path_in_schema} {c.total_uncompressed_size} {c.total_compressed_size}" for c in columns
    )
