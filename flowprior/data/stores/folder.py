"""A folder with one sub-folder per class, or with images of one class."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from flowprior.data.stores.base import ImageStore
from flowprior.data.stores.folder_listing import list_images
from flowprior.errors import UserError, one_line


class FolderStore(ImageStore):
    """``root/<class>/.../<image>``; images straight in ``root`` make one class (:mod:`flowprior.data.stores.folder_listing`).

    Names and labels of a million files are two arrays: loader processes share their pages, as they could not those of a million objects.
    """

    kind = "folder"

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)
        self.class_names, self.names, self.labels = list_images(root)

    def file(self, index: int) -> Path:
        """Where an image lies."""
        return self.root / self.member(index)

    def member(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def name(self, index: int) -> str:
        return str(self.file(index))

    def read(self, index: int) -> bytes:
        with self.open(index) as opened:
            return opened.read()

    def open(self, index: int) -> BinaryIO:
        try:
            return open(self.file(index), "rb")
        except OSError as error:
            raise UserError(f"the image {self.name(index)} cannot be read ({one_line(error)})") from error

    def lengths(self, first: int, end: int) -> list[int]:
        above = os.fsencode(self.root)
        return [os.stat(os.path.join(above, name)).st_size for name in np.asarray(self.names[first:end]).tolist()]
