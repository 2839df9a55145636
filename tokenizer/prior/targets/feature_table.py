"""A large table of features that several processes write together, and that goes on where it was killed.

``target_features.npy`` has its full size from the start. Its rows are written in chunks of whole images, each by one process;
``target_features.done`` holds a byte per chunk, set once the chunk's rows are on the disk. So no row is missing or comes twice, at
any number of processes, however often they are killed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowprior.errors import UserError
from flowprior.run.files import flush_to_disk, read_json, write_bytes, write_json

DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class TableSizes:
    """What is to be written."""

    rows: int
    channels: int
    rows_per_chunk: int
    dtype: str

    @property
    def chunks(self) -> int:
        return -(-self.rows // self.rows_per_chunk)

    @property
    def bytes(self) -> int:
        return self.rows * self.channels * DTYPES[self.dtype].itemsize


class FeatureTable:
    """The table in ``folder``; see the module.

    Args:
        folder: of the stage.
        made_from: what determines every number in the table; a table made from something else is begun anew.
    """

    def __init__(self, folder: Path, made_from: str) -> None:
        self.folder, self.made_from = folder, made_from
        self.file, self.marks = folder / "target_features.npy", folder / "target_features.done"
        self.record_file = folder / "target_features.json"

    def kept_recipe(self) -> str | None:
        """What the table that lies in the folder was made from; None where there is none."""
        try:
            return str(read_json(self.record_file, "record of the target features")["made_from"])
        except (UserError, KeyError):
            return None

    def record(self) -> dict[str, Any] | None:
        """What the folder's table is, where it was made from the same; None otherwise."""
        try:
            record = read_json(self.record_file, "record of the target features")
            sizes = TableSizes(**record["sizes"])
        except (UserError, KeyError, TypeError):
            return None
        if record.get("made_from") != self.made_from or not self.file.is_file() or not self.marks.is_file():
            return None
        whole = self.file.stat().st_size == self._offset(sizes) + sizes.bytes
        return record if whole and self.marks.stat().st_size == sizes.chunks else None

    def is_complete(self) -> bool:
        return self.record() is not None and not self.missing()

    def missing(self) -> list[int]:
        """The chunks that are not written yet."""
        return [chunk for chunk, mark in enumerate(self.marks.read_bytes()) if mark != 1]

    def begin(self, sizes: TableSizes, about: dict[str, Any]) -> None:
        """Make room for the table, unless it is there already; called by one process.

        Raises:
            UserError: the disk has too little room.
        """
        record = self.record()
        if record is not None and record["sizes"] == asdict(sizes):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for old in (self.record_file, self.marks, self.file):
            old.unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < sizes.bytes:
            raise UserError(
                f"{self.file} takes {sizes.bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: lower the rows or tokens of the "
                f"target's section, or choose another run_dir"
            )
        with open(self.file, "wb") as file:
            file.write(self._header(sizes))
            file.truncate(self._offset(sizes) + sizes.bytes)
        flush_to_disk(self.file)
        write_bytes(self.marks, bytes(sizes.chunks))
        write_json(self.record_file, {"made_from": self.made_from, "sizes": asdict(sizes), "about": about})

    def write(self, chunk: int, rows: Tensor, sizes: TableSizes) -> None:
        """Put the rows of one chunk in their place, and then mark it as written.

        Raises:
            UserError: the features are not finite in the table's precision.
        """
        first = chunk * sizes.rows_per_chunk
        expected = min(sizes.rows_per_chunk, sizes.rows - first)
        rows = rows[:expected].to(DTYPES[sizes.dtype]).contiguous()
        if rows.shape != (expected, sizes.channels):
            raise ValueError(f"chunk {chunk} has shape {tuple(rows.shape)}, not {(expected, sizes.channels)}")
        if not torch.isfinite(rows).all():
            raise UserError(
                f"features of rows {first} to {first + expected} are not finite in {sizes.dtype}: write dtype=float32"
            )
        place = self._offset(sizes) + first * sizes.channels * rows.element_size()
        _write_at(self.file, rows.numpy().tobytes(), place)
        _write_at(self.marks, b"\x01", chunk)

    @staticmethod
    def _header(sizes: TableSizes) -> bytes:
        import io

        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {
                "descr": np.lib.format.dtype_to_descr(np.dtype(sizes.dtype)),
                "fortran_order": False,
                "shape": (sizes.rows, sizes.channels),
            },
        )
        return header.getvalue()

    @classmethod
    def _offset(cls, sizes: TableSizes) -> int:
        return len(cls._header(sizes))


def _write_at(path: Path, data: bytes, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
