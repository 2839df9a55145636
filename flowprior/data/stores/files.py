"""Images that are files of their own: in a folder with a sub-folder per class, or named by a list."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from pathlib import Path
from typing import BinaryIO

from flowprior.data.stores.base import IMAGES_AT_ONCE, ImageStore, printable
from flowprior.data.stores.folder_listing import list_images
from flowprior.errors import UserError, one_line


class FilesStore(ImageStore):
    """Images by the paths of their files, below ``root``."""

    root: Path

    @property
    def home(self) -> Path:  # type: ignore[override]
        return self.root

    def file(self, index: int) -> Path:
        """Where an image lies."""
        return self.root / self.member(index)

    def name(self, index: int) -> str:
        return printable(str(self.file(index)))

    def read(self, index: int) -> bytes:
        with self.open(index) as opened:
            return opened.read()

    def open(self, index: int) -> BinaryIO:
        try:
            return open(self.file(index), "rb")
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise UserError(f"the image {self.name(index)} cannot be read ({one_line(error)})") from error

    @abstractmethod
    def member(self, index: int) -> str:
        """The path of an image's file below ``root``."""

    def facts(self, first: int, end: int) -> list[str]:
        return [f"{self.member(index)} {length}" for index, length in zip(range(first, end), self.lengths(first, end))]

    def stamp(self) -> str:
        digest = hashlib.sha256(super().stamp().encode())
        for first in range(0, len(self), IMAGES_AT_ONCE):
            times = [status.st_mtime_ns for status in self.statuses(first, min(first + IMAGES_AT_ONCE, len(self)))]
            digest.update(repr(times).encode())
        return digest.hexdigest()[:16]

    def lengths(self, first: int, end: int) -> list[int]:
        return [status.st_size for status in self.statuses(first, end)]

    def statuses(self, first: int, end: int) -> list[os.stat_result]:
        """What the system says of the files ``first`` to ``end``; a :class:`UserError` where there is none."""
        found, index = [], first
        try:
            for index in range(first, end):
                found.append(self.file(index).stat())
        except (OSError, ValueError) as error:
            raise UserError(
                f"there is no image {self.name(index)}, which {self.where} names ({one_line(getattr(error, 'strerror', None) or error)}): "
                "mend its path or leave it out, which data.skip_bad does not"
            ) from error
        return found


class FolderStore(FilesStore):
    """``root/<class>/.../<image>``; images straight in ``root`` make one class (:mod:`flowprior.data.stores.folder_listing`).

    Names and labels of a million files are two arrays: loader processes share their pages, as they could not those of a million objects.
    """

    kind = "folder"

    def __init__(self, root: Path, labelled: bool = True) -> None:
        self.root, self.where = root, str(root)
        self.class_names, self.names, self.labels = list_images(root, labelled)
        self.loses_labels = not labelled and any(b"/" in name for name in self.names.tolist())

    def member(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def statuses(self, first: int, end: int) -> list[os.stat_result]:
        above = os.fsencode(self.root)
        return [os.stat(os.path.join(above, name)) for name in self.names[first:end].tolist()]
