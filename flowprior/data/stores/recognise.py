"""Which kind of place a path names, by what lies there."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flowprior.data.stores.base import ImageStore, StoreOptions
from flowprior.data.stores.files import FolderStore
from flowprior.data.stores.folder_listing import EXTENSIONS, SPLITS, is_system_file, some_of
from flowprior.data.stores.listed import KINDS as LISTS
from flowprior.data.stores.listed import ListStore
from flowprior.data.stores.patterns import is_pattern, matching_files
from flowprior.data.stores.shards import TarStore, ZipStore
from flowprior.errors import UserError

ARCHIVES = {".tar": TarStore, ".zip": ZipStore}
KINDS = {**ARCHIVES, **dict.fromkeys(sorted(LISTS), ListStore)}
SET = "set DATA= or data.path= to where the images lie"


def open_store(path: str, options: StoreOptions = StoreOptions()) -> ImageStore:  # noqa: B008
    """The images that lie at ``path``.

    Raises:
        UserError: nothing lies there, or nothing that is read.
    """
    if not path:
        raise UserError(f"data.source=files says nowhere which: {SET}")
    if is_pattern(path):
        return _of_files(matching_files(path), path, options)
    place = Path(path)
    if place.is_file():
        return _of_files([place], path, options)
    if not place.is_dir():
        raise UserError(f"there are no images at '{path}', which is no folder and no file: {SET}")
    shards = _shards(place)
    return _of_files(shards, path, options) if shards else FolderStore(place)


def may_hold_images(path: str) -> bool:
    """Whether something lies at ``path``, as far as a glance tells."""
    return bool(path) and (is_pattern(path) or Path(path).exists())


def _of_files(files: list[Path], path: str, options: StoreOptions) -> ImageStore:
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1:
        raise UserError(f"{path} stands for files of several kinds ({', '.join(sorted(kinds))}): name those of one")
    kind = kinds.pop()
    splits = sorted(SPLITS & {word for file in files for word in re.split(r"[^a-z]+", file.stem.lower())})
    if len(splits) > 1:
        pattern = files[0].parent / f"*{splits[0]}*{kind}"
        raise UserError(f"{path} holds files of {' and '.join(splits)}: write DATA='{pattern}', say")
    if kind not in KINDS:
        raise UserError(
            f"images are read from folders and from files that end in {', '.join(KINDS)}, not from {some_of([f.name for f in files])}"
        )
    return KINDS[kind](files, path, options)


def _shards(folder: Path) -> list[Path]:
    """The shards straight in a folder that holds no images and no folders; none in any other."""
    found: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_system_file(entry.name):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir() or suffix in EXTENSIONS:
                return []
            if suffix in ARCHIVES:
                found.append(Path(entry.path))
    return sorted(found)
