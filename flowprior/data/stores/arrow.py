"""Arrow tables, memory-mapped: data sets that Hugging Face's library saved, and those that it fetches from the hub.

Saved ones are read by pyarrow alone. The format is Arrow's own and has not changed, while ``datasets`` would want features that its version
knows, decode images itself, and write to a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowprior.data.stores.base import ImageStore, StoreOptions
from flowprior.data.stores.labels import NO_LABEL
from flowprior.data.stores.tables import (
    TableLabels,
    bytes_of,
    check_classes,
    choose_columns,
    first_without_bytes,
    image_bytes,
    import_pyarrow,
    reading,
)
from flowprior.errors import UserError, one_line
from flowprior.notes import note
from flowprior.run.files import read_json

if TYPE_CHECKING:
    import pyarrow

HUB = "hf://"
STATE, SPLITS = "state.json", "dataset_dict.json"


class ArrowStore(ImageStore):
    """The images of a table that lies memory-mapped on the disk.

    Args:
        open_table: maps it; a process that gets a pickled copy calls it again.
        where: what a person named.
        options: names of the columns.
        home: folder of the table's files; None where they lie in a cache, whose rows may name files in place of bytes.

    Raises:
        UserError: a column is not there or may be one of several, or the table is damaged.
    """

    kind = "arrow"

    def __init__(
        self, open_table: Callable[[], pyarrow.Table], where: str, options: StoreOptions, home: Path | None
    ) -> None:
        self.open_table, self.where, self.home, self.follows_paths = open_table, where, home, home is None
        table = open_table()
        labels = TableLabels()
        with reading(where):
            self.columns = columns = choose_columns(table.schema, options, where)
            if not table.num_rows:
                raise UserError(f"{where} holds no rows")
            self._use(table)
            if not options.skip_bad:
                self._check_images()
            for chunk in table.column(columns.label).chunks if columns.label else ():
                labels.add(chunk)
        guessed = options.label_column in ("", NO_LABEL)
        self.class_names, self.labels, notes = labels.classes(columns, where, table.num_rows, guessed, self.name)
        for line in notes:
            note(line)

    def _use(self, table: pyarrow.Table) -> None:
        for column in filter(None, (self.columns.image, self.columns.label)):
            table.column(column).validate(full=True)  # its numbers are places in memory
        self.chunks = [chunk for chunk in table.column(self.columns.image).chunks if len(chunk)]
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])

    def _check_images(self) -> None:
        """Refuses the first row without an image."""
        for chunk, end in zip(self.chunks, self.ends.tolist()):
            if not self.follows_paths and (row := first_without_bytes(chunk)) >= 0:
                self.read(end - len(chunk) + row)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("chunks", "ends")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        table = self.open_table()
        if table.num_rows != len(self.labels) or self.columns.image not in table.column_names:
            raise UserError(f"{self.where} has changed since it was opened: start again")
        with reading(self.where):
            self._use(table)

    def _place(self, index: int) -> tuple[int, int]:
        """Chunk, and row within it."""
        chunk = int(np.searchsorted(self.ends, index, side="right"))
        return chunk, index - int(self.ends[chunk]) + len(self.chunks[chunk])

    def name(self, index: int) -> str:
        return f"{self.where}: row {index}"

    def read(self, index: int) -> bytes:
        chunk, row = self._place(index)
        return image_bytes(self.chunks[chunk][row], self.name(index), self.follows_paths)

    def lengths(self, first: int, end: int) -> list[int]:
        found: list[int] = []
        while first < end:
            chunk, row = self._place(first)
            part = self.chunks[chunk].slice(row, end - first)
            lengths = import_pyarrow().compute.binary_length(bytes_of(part)).to_pylist()
            found += [length if length is not None else len(self.read(first + n)) for n, length in enumerate(lengths)]
            first += len(part)
        return found

    def facts(self, first: int, end: int) -> list[str]:
        return list(map(str, self.lengths(first, end)))


def open_saved(folder: Path, where: str, options: StoreOptions) -> ArrowStore:
    """A data set that ``datasets`` has saved in a folder.

    Raises:
        UserError: a file is missing or damaged, or the folder holds several splits.
    """
    if (folder / SPLITS).is_file():
        splits = read_json(folder / SPLITS, "list of splits").get("splits")
        named = list(map(str, splits)) if isinstance(splits, list) and splits else ["train"]
        raise UserError(f"{folder} holds the splits {', '.join(named)}: write DATA={folder / named[0]}, say")
    state = read_json(folder / STATE, "state of the data set")
    try:
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / STATE} is damaged: save the data set again") from error
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} holds a choice of rows apart from them: save it again after flatten_indices()")
    return open_files(files, where, options)


def open_files(files: list[Path], where: str, options: StoreOptions) -> ArrowStore:
    """Arrow files whose rows follow each other."""
    return ArrowStore(partial(_table_of, files), where, options, files[0].parent if files else None)


def _table_of(files: list[Path]) -> pyarrow.Table:
    pyarrow, tables = import_pyarrow(), []
    for file in files:
        with reading(f"the Arrow file {file}"):
            mapped = pyarrow.memory_map(str(file))
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            tables.append((pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(mapped).read_all())
    if not tables:
        raise UserError("the data set has no files")
    for file, table in zip(files, tables):
        check_classes(table.schema, file, tables[0].schema, files[0])
    try:
        return pyarrow.concat_tables(tables)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"the columns of {files[0]} and of the files beside it differ ({one_line(error)})") from error


def open_hub(path: str, options: StoreOptions) -> ArrowStore:
    """``hf://name[:split]``: a data set by its name on the hub, or by the folder that it lies in, prepared by ``datasets`` in its cache.

    Raises:
        UserError: ``datasets`` is not there, or cannot get the data set; it has several splits, and none is named.
    """
    name, _, split = path.removeprefix(HUB).partition(":")
    # Its tables are this machine's own, and name files that were fetched where those are a folder of images.
    return ArrowStore(partial(_table_of_hub, name, split, path), path, options, None)


def _table_of_hub(name: str, split: str, path: str) -> pyarrow.Table:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{path} is fetched by datasets, which is not there: install it by `pip install datasets`"
        ) from error
    try:
        splits = [split] if split else datasets.get_dataset_split_names(name)
        if len(splits) != 1:
            raise UserError(
                f"{path} has the splits {', '.join(splits)}: write {HUB}{name}:{splits[0] if splits else 'train'}, say"
            )
        found = datasets.load_dataset(name, split=splits[0])
    except UserError:
        raise
    except Exception as error:  # of the network, the hub, the files there and their builders: dozens
        raise UserError(f"{path} cannot be had ({type(error).__name__}: {one_line(error)})") from error
    return found.data.table


def is_saved(folder: Path) -> bool:
    """Whether ``datasets`` has saved a data set there."""
    return (folder / SPLITS).is_file() or (folder / STATE).is_file() and (folder / "dataset_info.json").is_file()
