"""Which kind of place a path names, by what lies there."""

from __future__ import annotations

from pathlib import Path

from flowprior.data.stores.base import ImageStore
from flowprior.data.stores.folder import FolderStore
from flowprior.errors import UserError


def open_store(path: str) -> ImageStore:
    """The images that lie at ``path``.

    Raises:
        UserError: nothing lies there, or nothing that is read.
    """
    root = Path(path)
    if not path or not root.is_dir():
        raise UserError(f"there is no image folder at '{path}': set DATA=<folder> or data.path=<folder>")
    return FolderStore(root)
