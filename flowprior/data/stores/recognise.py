"""Which kind of place a path names, by what lies there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from flowprior.data.stores.arrow import HUB, is_saved, open_files, open_hub, open_saved
from flowprior.data.stores.base import ImageStore, StoreOptions, printable
from flowprior.data.stores.files import FolderStore
from flowprior.data.stores.folder_listing import EXTENSIONS, SPLITS, is_system_file, some_of
from flowprior.data.stores.labels import NO_LABEL
from flowprior.data.stores.listed import KINDS as LISTS
from flowprior.data.stores.listed import ListStore
from flowprior.data.stores.parquet import ParquetStore
from flowprior.data.stores.patterns import is_pattern, matching_files
from flowprior.data.stores.shards import TarStore, ZipStore
from flowprior.data.stores.verified import without_bad_images
from flowprior.errors import UserError

SHARDS = {".tar": TarStore, ".zip": ZipStore, ".parquet": ParquetStore, ".arrow": open_files}
KINDS = {**SHARDS, **dict.fromkeys(sorted(LISTS), ListStore)}
COMPRESSED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.IGNORECASE)
UNPACK = {
    ".bz2": "bunzip2",
    ".tbz": "bunzip2",
    ".tbz2": "bunzip2",
    ".xz": "unxz",
    ".txz": "unxz",
    ".zst": "unzstd",
    ".lz4": "unlz4",
}
SET = "set DATA= or data.path= to where the images lie"


def open_store(path: str, options: StoreOptions = StoreOptions()) -> ImageStore:  # noqa: B008
    """The images that lie at ``path``.

    Raises:
        UserError: nothing lies there, or nothing that is read.
    """
    try:
        store = _recognised(path, options)
    except UserError as error:
        raise UserError(printable(str(error))) from error
    if options.shuffle_block is not None:
        store.mixed = options.shuffle_block
    return without_bad_images(store) if options.skip_bad else store


def _recognised(path: str, options: StoreOptions) -> ImageStore:
    if not path:
        raise UserError(f"data.source=files says nowhere which: {SET}")
    if path.startswith(HUB):
        return open_hub(path, options)
    if is_pattern(path):
        return _of_files(matching_files(path), path, options)
    place = Path(path)
    if place.is_file():
        return _of_files([place], path, options)
    if not place.is_dir():
        raise UserError(f"there are no images at '{path}', which is no folder and no file: {SET}")
    if is_saved(place):
        return open_saved(place, path, options)
    if shards := _shards(place):
        return _of_files(shards, path, options)
    below = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not is_system_file(entry.name))
    if deeper := [name for name in below if is_saved(place / name) or _shards(place / name)]:
        raise UserError(f"the images of {path} lie in {some_of(deeper)} below it: write DATA={place / deeper[0]}, say")
    _check_unpacked(_alone(place, lambda name: bool(COMPRESSED_TAR.search(name))), path)
    if options.image_column or options.label_column not in ("", "folder", NO_LABEL):
        raise UserError(
            f"{path} is a folder of images, whose labels are its sub-folders' names: leave out data.image_column and data.label_column"
        )
    return FolderStore(place, labelled=options.label_column != NO_LABEL)


def may_hold_images(path: str) -> bool:
    """Whether something lies at ``path``, as far as a glance tells."""
    return bool(path) and (path.startswith(HUB) or is_pattern(path) or Path(path).exists())


def _of_files(files: list[Path], path: str, options: StoreOptions) -> ImageStore:
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1:
        raise UserError(f"{path} holds files of several kinds ({', '.join(sorted(kinds))}): name those of one")
    kind = kinds.pop()
    _check_unpacked(files, path)
    splits = sorted(SPLITS & {word for file in files for word in re.split(r"[^a-z]+", file.stem.lower())})
    if len(splits) > 1:
        pattern = files[0].parent / f"*{splits[0]}*{kind}"
        raise UserError(f"{path} holds files of {' and '.join(splits)}: write DATA='{pattern}', say")
    if kind not in KINDS:
        names = some_of([file.name for file in files])
        raise UserError(f"images are read from folders and from files that end in {', '.join(KINDS)}, not from {names}")
    return KINDS[kind](files, path, options)


def _check_unpacked(files: list[Path], path: str) -> None:
    """Refuses tar files that are compressed as wholes."""
    if packed := next((file for file in files if COMPRESSED_TAR.search(file.name)), None):
        raise UserError(
            f"{packed} is compressed as a whole, and images are read by their place in a file: unpack it once to a .tar, as "
            f"`{UNPACK.get(packed.suffix.lower(), 'gunzip')} {packed.name}` does"
        )


def _shards(folder: Path) -> list[Path]:
    return _alone(folder, lambda name: os.path.splitext(name)[1].lower() in SHARDS)


def _alone(folder: Path, is_wanted: Callable[[str], bool]) -> list[Path]:
    """The files that are wanted by their names, straight in a folder that holds no images and no folders; none in any other."""
    found: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_system_file(entry.name):
                continue
            if os.path.splitext(entry.name)[1].lower() in EXTENSIONS or entry.is_dir():
                return []
            if is_wanted(entry.name):
                found.append(Path(entry.path))
    return sorted(found)
