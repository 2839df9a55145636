"""Parquet files with a column of encoded images. What is read at once is a row group, and the last of them are kept."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowprior.data.stores.base import ImageStore, StoreOptions
from flowprior.data.stores.footers import open_parquet, row_groups
from flowprior.data.stores.index import index_made_from
from flowprior.data.stores.labels import NO_LABEL
from flowprior.data.stores.shard_files import FileStamp
from flowprior.data.stores.tables import (
    TableLabels,
    check_classes,
    choose_columns,
    first_without_bytes,
    image_bytes,
    reading,
)
from flowprior.errors import UserError
from flowprior.notes import note

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

LARGEST_GROUP = 1 << 30  # bytes of images that are read at once
KEPT_BYTES = 512 << 20  # of row groups that each process keeps; the last one read is kept whatever it holds
GROUPS_LOOKED_AT = 64
GROUPS_MIXED = 4  # at a time, in training, where so many can be kept
FILES_OPEN = 8


class ParquetStore(ImageStore):
    """Images in Parquet files.

    Args:
        files: in the images' order.
        where: what a person named.
        options: names of the columns.

    Raises:
        UserError: pyarrow is not there, a file is damaged, its columns are others, its row groups are too large, or an image is missing.

    Attributes:
        mixed: row groups that training mixes at a time.
    """

    kind, part = "parquet", "row group"

    def __init__(self, files: list[Path], where: str, options: StoreOptions) -> None:
        self.files, self.where, self.home = files, where, files[0].parent
        with reading(f"the Parquet file {files[0]}"):
            schema = open_parquet(files[0]).schema_arrow
            self.columns = choose_columns(schema, options, where)
        self.group_of = list[tuple[int, int]]()  # of every group its file, and its number there
        self.group_facts = list[str]()
        ends, first_rows, largest, incomplete, labels = [0], list[int](), 1, list[int](), TableLabels()
        for file in files:
            with reading(f"the Parquet file {file}"):
                opened = open_parquet(file)
                self._check_columns(file, opened.schema_arrow, schema)
                if self.columns.label:
                    for chunk in opened.read(columns=[self.columns.label], use_threads=False).column(0).chunks:
                        labels.add(chunk)
        for number, (file, groups) in enumerate(zip(files, row_groups(files, self.columns.image))):
            first_rows.append(ends[-1])
            for place, group in enumerate(groups):
                if not group.rows:
                    continue
                largest = max(largest, group.image_bytes)
                if largest > LARGEST_GROUP:
                    raise UserError(
                        f"row group {place} of {file} holds {largest / 1e9:.1f} GB of images, all of which is read for any of them: write "
                        "the files anew with smaller row groups, such as row_group_size=100"
                    )
                if group.incomplete:
                    incomplete.append(len(self.group_of))
                ends.append(ends[-1] + group.rows)
                self.group_of.append((number, place))
                self.group_facts.append(group.facts)
        if len(ends) == 1:
            raise UserError(f"{where} holds no rows")
        self.first_rows, self.group_starts, self.ends = np.array(first_rows), np.array(ends[:-1]), np.array(ends[1:])
        self.mixed = max(1, min(GROUPS_MIXED, KEPT_BYTES // largest))
        self._begin()
        if incomplete and not options.skip_bad:
            self._refuse_missing(incomplete[0])
        guessed = options.label_column in ("", NO_LABEL)
        self.class_names, self.labels, notes = labels.classes(self.columns, where, ends[-1], guessed, self.name)
        for line in notes:
            note(line)

    def _begin(self) -> None:
        self.process, self.lock = os.getpid(), threading.Lock()
        self.kept, self.kept_bytes, self.opened = OrderedDict[int, Any](), 0, OrderedDict[int, Any]()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value for name, value in self.__dict__.items() if name not in ("lock", "kept", "kept_bytes", "opened")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _check_columns(self, file: Path, here: pyarrow.Schema, schema: pyarrow.Schema) -> None:
        """Refuses a file that is not as the first one is."""
        for column in filter(None, (self.columns.image, self.columns.label)):
            if column not in here.names:
                raise UserError(
                    f"{file} has no column '{column}', which {self.files[0].name} has: name files of one data set"
                )
            if (kind := here.field(column).type) != (wanted := schema.field(column).type):
                raise UserError(
                    f"the column '{column}' of {file} holds {kind}, and that of {self.files[0].name} {wanted}: write them alike"
                )
        check_classes(here, file, schema, self.files[0])

    def _refuse_missing(self, group: int) -> None:
        """Refuses the first row without an image in a row group that has one by its own account."""
        row = int(self.group_starts[group])
        for chunk in self._group(group).chunks:
            if (missing := first_without_bytes(chunk)) >= 0:
                self.read(row + missing)
            row += len(chunk)

    @property
    def starts(self) -> np.ndarray:
        return self.group_starts

    def name(self, index: int) -> str:
        file = int(np.searchsorted(self.first_rows, index, side="right")) - 1
        return f"{self.files[file]}: row {index - self.first_rows[file]}"

    def read(self, index: int) -> bytes:
        group = int(np.searchsorted(self.ends, index, side="right"))
        return image_bytes(self._group(group)[index - int(self.group_starts[group])], self.name(index))

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
                table = self._file(number).read_row_group(in_file, columns=[self.columns.image], use_threads=False)
            if table.num_rows != self.ends[group] - self.group_starts[group]:
                raise UserError(f"the Parquet file {self.files[number]} has changed since it was opened: start again")
            self.kept[group] = images = table.column(0)
            self.kept_bytes += images.nbytes
            while len(self.kept) > 1 and self.kept_bytes > KEPT_BYTES:
                self.kept_bytes -= self.kept.popitem(last=False)[1].nbytes
            return images

    def _file(self, number: int) -> pyarrow.parquet.ParquetFile:
        if number not in self.opened:
            if len(self.opened) >= FILES_OPEN:
                self.opened.popitem(last=False)[1].close()
            self.opened[number] = open_parquet(self.files[number])
        self.opened.move_to_end(number)
        return self.opened[number]

    def lengths(self, first: int, end: int) -> None:
        return None

    def facts(self, first: int, end: int) -> list[str]:
        """Rows and bytes of the row groups that begin here."""
        begin = np.searchsorted(self.group_starts, [first, end])
        return self.group_facts[slice(*begin.tolist())]

    def stamp(self) -> str:
        stamps = [FileStamp.of(file.stat()) for file in self.files]
        return index_made_from(self.kind, zip((file.name for file in self.files), stamps), self.columns)

    def spread(self, most: int) -> np.ndarray:
        """Of few row groups, which are read as wholes."""
        if len(self) <= most:
            return np.arange(len(self))
        starts, groups = self.group_starts, len(self.ends)
        wanted = min(groups, max(GROUPS_LOOKED_AT, -(-most * groups // len(self))))
        chosen = np.unique(np.linspace(0, groups - 1, wanted).astype(np.int64))
        each = max(1, most // len(chosen))
        parts = [np.linspace(starts[g], self.ends[g] - 1, min(each, int(self.ends[g] - starts[g]))) for g in chosen]
        return np.unique(np.concatenate(parts).astype(np.int64))[:most]
