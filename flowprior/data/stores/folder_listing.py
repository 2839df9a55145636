"""Which files of a folder are images, and of which class. Nothing is left out without being counted and said."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from flowprior.data.stores.labels import origin
from flowprior.errors import UserError
from flowprior.notes import counted, note

SPLITS = {"train", "val", "valid", "validation", "test"}
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
READ = ", ".join(sorted(EXTENSIONS))
SYSTEM_NAMES = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "lost+found"),
    *("$recycle.bin", "system volume information", "@eadir", "#recycle"),
}


def is_system_file(name: str) -> bool:
    """Whether a file or folder of this name is the system's and not the data's: hidden, or one that a desktop or an archiver leaves."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


class ImageFolder(NamedTuple):
    """The images below a folder: class by class in the order of the classes' names, and in each in the order of their paths."""

    class_names: list[str]
    names: np.ndarray  # (N,) bytes: paths below the folder
    labels: np.ndarray  # (N,) int64


class _Found(NamedTuple):
    images: list[str]  # paths below the folder that was looked through
    unread: Counter[str]  # files of other kinds, by extension


def list_images(root: Path, labelled: bool = True) -> ImageFolder:
    """``root/<class>/.../<image>``; images straight in ``root`` make one class. Prints how many files of which kinds are not read.

    Args:
        root: the folder.
        labelled: otherwise all images are of one class, in the same order.

    Raises:
        UserError: there are no images, a sub-folder has none and so is no class, images lie beside class folders, sub-folders are
            splits, a folder is met twice, or a name with an image's extension is no file.
    """
    seen: dict[tuple[int, int], str] = {}
    here, folders = _entries(root, seen)
    if folders and all(name.lower() in SPLITS for name in folders):
        raise UserError(
            f"{root} holds {' and '.join(folders)}, which are no classes: write DATA={root / folders[0]}, say"
        )
    found = [_walk(root / name, seen) for name in folders]
    if not here.images and not any(part.images for part in found):
        unread = sum((part.unread for part in found), here.unread)
        raise UserError(
            f"the folder {root} holds no images ({READ}){f' but {kinds_in_words(unread)}' if unread else ''}"
        )
    if here.images and folders:
        raise UserError(
            f"{root} holds {len(here.images)} image{'s'[: len(here.images) > 1]} beside the class folders {some_of(folders)}: move them "
            "into the folders of their classes, or the folders elsewhere"
        )
    if empty := [f"{name} ({kinds_in_words(part.unread)})" for name, part in zip(folders, found) if not part.images]:
        raise UserError(
            f"{root} holds {some_of(empty)} without images ({READ}), and every sub-folder is a class: move or remove these"
        )
    if unread := sum((part.unread for part in found), here.unread):
        note(f"in {root} are not read: {kinds_in_words(unread)} (images are {READ})")
    if folders and not labelled:
        note(
            f"{root} has {counted(sum(len(part.images) for part in found), 'image', 'images')}, read without labels: one class"
        )
    elif not folders:
        note(f"{root} says no labels: its {counted(len(here.images), 'image is', 'images are')} one class")
    else:
        note(origin(str(root), sum(len(part.images) for part in found), len(folders), "its sub-folders"))
    for name, alike in _alike(folders):
        note(
            f"in {root} the class folders {name} and {alike} differ in case or in Unicode's form only, and are two classes"
        )
    parts = [part.images for part in found] or [here.images]
    prefixes = [f"{name}/" for name in folders] or [""]
    names = [os.fsencode(prefix + name) for prefix, part in zip(prefixes, parts) for name in part]
    labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    if not labelled:
        return ImageFolder([root.name], np.array(names), np.zeros_like(labels))
    return ImageFolder(folders or [root.name], np.array(names), labels)


def _alike(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of names that look the same."""
    first: dict[str, str] = {}
    pairs = [(first.setdefault(unicodedata.normalize("NFC", name).casefold(), name), name) for name in names]
    return [(name, alike) for name, alike in pairs if name != alike]


def _entries(folder: Path, seen: dict[tuple[int, int], str], prefix: str = "") -> tuple[_Found, list[str]]:
    """Images and other files straight in ``folder``, and its sub-folders in the order of their names."""
    status = folder.stat()
    if (again := seen.setdefault((status.st_dev, status.st_ino), str(folder))) != str(folder):
        raise UserError(f"{folder} is the same folder as {again}: remove one of them, whose images would count twice")
    found, folders = _Found([], Counter()), []
    with os.scandir(folder) as entries:
        for entry in entries:
            extension = os.path.splitext(entry.name)[1].lower()
            if is_system_file(entry.name):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif extension not in EXTENSIONS:
                found.unread[extension or "without extension"] += 1
            elif entry.is_file():
                found.images.append(prefix + entry.name)
            else:
                raise UserError(f"the image {entry.path} is no file, or a link to none: mend or remove it")
    return _Found(sorted(found.images), found.unread), sorted(folders)


def _walk(folder: Path, seen: dict[tuple[int, int], str]) -> _Found:
    """All images below ``folder``."""
    whole, left = _Found([], Counter()), [""]
    while left:
        prefix = left.pop()
        part, folders = _entries(folder / prefix, seen, prefix)
        whole.images.extend(part.images)
        whole.unread.update(part.unread)
        left += [f"{prefix}{name}/" for name in folders]
    return _Found(sorted(whole.images, key=lambda name: name.split("/")), whole.unread)


def some_of(names: list[str], most: int = 4) -> str:
    """The first of ``names``, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def kinds_in_words(unread: Counter[str]) -> str:
    """Numbers of files by extension, in words."""
    if not unread:
        return "no files"
    return some_of(
        [f"{count} {kind}" for kind, count in sorted(unread.items(), key=lambda item: (-item[1], item[0]))], 8
    )
