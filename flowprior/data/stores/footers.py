"""What Parquet files say of their row groups, looked at by a process of its own.

A footer has no checksum, and pyarrow describes a column outside of what turns C++'s exceptions into Python's: damage there would end the
process in place of a message.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from flowprior.data.stores.tables import import_pyarrow, reading
from flowprior.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet


class RowGroup(NamedTuple):
    """A row group by its own account.

    Attributes:
        rows: in it.
        image_bytes: of the images, unpacked.
        incomplete: whether images are missing.
        facts: what tells it from another: rows, and bytes of every column.
    """

    rows: int
    image_bytes: int
    incomplete: bool
    facts: str


def open_parquet(file: Path) -> pyarrow.parquet.ParquetFile:
    """A Parquet file; a :class:`UserError` where it is none."""
    pyarrow = import_pyarrow()
    with reading(f"the Parquet file {file}"):
        # Buffering ahead is the work of threads, which a forked process has none of.
        return pyarrow.parquet.ParquetFile(file, pre_buffer=False, page_checksum_verification=True)


def row_groups(files: list[Path], image: str) -> list[list[RowGroup]]:
    """Of every file its row groups.

    Args:
        files: all of which have the column.
        image: column of the encoded images.

    Raises:
        UserError: a footer is damaged.
    """
    if not hasattr(os, "fork"):
        return [_look(file, image) for file in files]
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        os.close(receiver)
        _tell(files, image, sender)
    os.close(sender)
    with os.fdopen(receiver) as lines:
        told = [json.loads(line) for line in lines]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if problem := next((groups for groups in told if isinstance(groups, str)), ""):
        raise UserError(problem)
    if len(told) < len(files):
        if code == -signal.SIGKILL:
            raise UserError(
                f"the process that looks at the footer of the Parquet file {files[len(told)]} was killed: is there memory for it?"
            )
        raise UserError(f"the footer of the Parquet file {files[len(told)]} is damaged: get or make it again")
    return [[RowGroup(*group) for group in groups] for groups in told]


def _tell(files: list[Path], image: str, sender: int) -> None:
    """Write a line for every file, and end: nothing that the process has inherited is tidied up by it."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # whose last words are C++'s
        with os.fdopen(sender, "w") as lines:
            for file in files:
                try:
                    told: object = _look(file, image)
                except UserError as error:
                    told = str(error)
                print(json.dumps(told, allow_nan=False), file=lines, flush=True)
    finally:
        os._exit(0)


def _look(file: Path, image: str) -> list[RowGroup]:
    with reading(f"the Parquet file {file}"):
        metadata = open_parquet(file).metadata
        groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
        return [
            _described([group.column(n) for n in range(group.num_columns)], group.num_rows, image) for group in groups
        ]


def _described(columns: list[pyarrow.parquet.ColumnChunkMetaData], rows: int, image: str) -> RowGroup:
    images = next(column for column in columns if column.path_in_schema in (image, f"{image}.bytes"))
    incomplete = images.is_stats_set and bool(images.statistics.null_count)
    facts = (f"{c.path_in_schema} {c.total_uncompressed_size} {c.total_compressed_size}" for c in columns)
    return RowGroup(rows, images.total_uncompressed_size, incomplete, f"{rows} rows {' '.join(facts)}")
