"""What every place of encoded images can be asked: how many there are, of which classes, and for the bytes of one of them."""

from __future__ import annotations

import hashlib
import io
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

IMAGES_AT_ONCE = 1024
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def printable(text: str) -> str:
    """``text`` on one line: names in other people's files may hold anything."""
    return UNPRINTABLE.sub(lambda found: repr(found[0])[1:-1], text)


def place_name(where: str) -> str:
    """What a place is called, for a class or for a file about it."""
    if Path(where).exists():
        return Path(where).stem
    return re.split(r"[{*.:]", where.rstrip("/").rpartition("/")[2])[0].strip("-_ ") or "images"


@dataclass(frozen=True)
class StoreOptions:
    """How a person says what is what in a place.

    Attributes:
        image_column: column of a table, or extension in an archive, that holds the images; empty: what is guessed.
        label_column: column of a table, or what says the label in an archive; empty: what is guessed.
        shuffle_block: parts of the place that are shuffled among themselves in training; 0: all of it, None: as is best for the place.
        skip_bad: leave out images that cannot be read, once all were looked at.
    """

    image_column: str = ""
    label_column: str = ""
    shuffle_block: int | None = None
    skip_bad: bool = False


class ImageStore(ABC):
    """Encoded images by number, always in the same order.

    Reading changes nothing: several threads may read at once, and a process that is forked or that gets a pickled copy opens files of
    its own.

    Attributes:
        kind: a word for the kind of place, which manifests keep.
        where: what a person named.
        home: the folder beside whose images something may be kept; None where there is none.
        class_names: of the classes 0, 1, ...
        labels: ``(N,)``, whole numbers below the number of classes.
        part: what :attr:`starts` are those of, in words.
        mixed: parts that are shuffled among themselves in training; 0: all of them.
    """

    kind: str
    part: str = "part"
    mixed: int = 0
    where: str
    home: Path | None
    class_names: list[str]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, index: int) -> str:
        """Where the image lies, for a message."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image.

        Raises:
            UserError: it is not there any more, or damaged as far as the place can tell.
        """

    def open(self, index: int) -> BinaryIO:
        """The encoded image as a file, of which no more is read than is asked for, where the place can do that."""
        return io.BytesIO(self.read(index))

    @abstractmethod
    def lengths(self, first: int, end: int) -> list[int] | None:
        """Bytes of the images ``first`` to ``end``; None where that takes reading them.

        Raises:
            UserError: one of them is not there any more.
        """

    @abstractmethod
    def facts(self, first: int, end: int) -> list[str]:
        """What tells the images ``first`` to ``end`` from others without reading them, wherever the place lies.

        Raises:
            UserError: one of them is not there any more.
        """

    def stamp(self) -> str:
        """16 hex digits of what changes when an image is written anew, as far as it can be told without reading them all."""
        digest = hashlib.sha256(repr((self.kind, self.class_names)).encode())
        for first in range(0, len(self), IMAGES_AT_ONCE):
            digest.update(repr(self.facts(first, min(first + IMAGES_AT_ONCE, len(self)))).encode())
        return digest.hexdigest()[:16]

    def spread(self, most: int) -> np.ndarray:
        """Up to ``most`` of the images in their order, int64, spread evenly from the first to the last."""
        return np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).astype(np.int64))

    @property
    def starts(self) -> np.ndarray:
        """Where the parts begin that are best read one after the other (shards, row groups), int64 ``(parts,)``; the first at 0."""
        return np.zeros(1, np.int64)
