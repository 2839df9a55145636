"""Shards with an index: any image is read by its place in them, and nothing is unpacked."""

from __future__ import annotations

import io
import os
import re
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flowprior.data.stores.archive import Archive, Member
from flowprior.data.stores.base import ImageStore, StoreOptions, printable
from flowprior.data.stores.index import ShardIndex, index_made_from, read_index, write_index
from flowprior.data.stores.indexing import index_shards
from flowprior.data.stores.kept import kept_or_made, places
from flowprior.data.stores.shard_files import FileStamp, ShardFiles, ShardPart
from flowprior.data.stores.tar import TarArchive
from flowprior.data.stores.zip import ZipArchive, read_member
from flowprior.notes import note

HERE = "{where}"  # in the index: its place may be named otherwise, or moved


class ShardStore(ImageStore):
    """Images in archives, which are looked through once.

    Args:
        shards: the files, in the images' order.
        where: what a person named.
        options: see the class.

    Raises:
        UserError: a shard is damaged, or there are no images or no labels in them.
    """

    part = "shard"
    open_archive: Callable[[Path], Archive]

    def __init__(self, shards: list[Path], where: str, options: StoreOptions) -> None:
        self.where, self.home, self.shards = where, shards[0].parent, shards
        stamps = [FileStamp.of(shard.stat()) for shard in shards]
        chosen = (options.image_column, options.label_column)
        names = [shard.name for shard in shards]
        self.made_from = index_made_from(self.kind, zip(names, stamps), *chosen)
        self.files = ShardFiles(shards, stamps)
        self.index_files = places(self.home, ".index", self.kind, names, chosen)
        self._use(kept_or_made(self.index_files, self._read_index, lambda: self._look_through(options)))
        for line in self.index.notes:
            note(line.replace(HERE, where))

    def _read_index(self, file: Path) -> ShardIndex | None:
        return read_index(file, self.made_from, [stamp.size for stamp in self.files.stamps])

    def _look_through(self, options: StoreOptions) -> Callable[[Path], None]:
        columns, class_names, notes = index_shards(
            self.shards, type(self).open_archive, options.image_column, options.label_column, self.where
        )
        place = re.compile(
            rf"(?<![\w./-]){re.escape(self.where)}(?![\w-]|\.\w)"
        )  # the folder data is no part of data.label_column
        notes = [place.sub(HERE, line) for line in notes]
        about = {"made_from": self.made_from, "class_names": class_names, "notes": notes}
        return lambda file: write_index(file, columns, about)

    def _use(self, index: ShardIndex) -> None:
        self.index, self.labels, self.class_names = index, index.labels, index.class_names

    def __getstate__(self) -> dict[str, Any]:
        """Without the index, which a process that gets a pickled copy maps by itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("index", "labels", "class_names")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._use(kept_or_made(self.index_files, self._read_index, _already_made))

    def stamp(self) -> str:
        return self.made_from

    def shard(self, index: int) -> int:
        """The number of the shard in which an image lies."""
        return int(np.searchsorted(self.index.starts, index, side="right")) - 1

    def name(self, index: int) -> str:
        return printable(f"{self.shards[self.shard(index)]}: {os.fsdecode(self.index.name(index))}")

    def facts(self, first: int, end: int) -> list[str]:
        """By number of the shard: how the files are called is their owner's matter."""
        names = (os.fsdecode(self.index.name(index)) for index in range(first, end))
        return [
            f"{self.shard(n)} {name} {length}"
            for n, name, length in zip(range(first, end), names, self.lengths(first, end))
        ]

    def lengths(self, first: int, end: int) -> list[int]:
        return self.index.sizes[first:end].tolist()

    @property
    def starts(self) -> np.ndarray:
        starts = self.index.starts
        return starts[np.append(np.diff(starts) > 0, starts[-1] < len(self))]  # some shards hold no image

    @abstractmethod
    def read(self, index: int) -> bytes: ...


def _already_made() -> Callable[[Path], None]:
    raise RuntimeError("the index was removed while it was in use")


class TarStore(ShardStore):
    """Images in tar files."""

    kind = "tar"
    open_archive = TarArchive

    def read(self, index: int) -> bytes:
        return self.files.read(self.shard(index), int(self.index.offsets[index]), int(self.index.sizes[index]))

    def open(self, index: int) -> BinaryIO:
        part = ShardPart(self.files, self.shard(index), int(self.index.offsets[index]), int(self.index.sizes[index]))
        return io.BufferedReader(part, 4096)  # type: ignore[return-value]


class ZipStore(ShardStore):
    """Images in zip files, stored or deflated."""

    kind = "zip"
    open_archive = ZipArchive

    def read(self, index: int) -> bytes:
        shard, made = self.shard(index), self.index
        member = Member(
            made.name(index),
            int(made.offsets[index]),
            int(made.sizes[index]),
            packed=int(made.packed[index]),
            check=int(made.checks[index]) & 0xFFFFFFFF,
        )
        return read_member(lambda offset, size: self.files.read(shard, offset, size), member, self.name(index))
