"""From labels as they are written, numbers or words, to classes 0, 1, ... with names."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowprior.data.stores.base import place_name
from flowprior.errors import UserError, one_line
from flowprior.notes import counted

LABEL_NAMES = ("label", "labels", "cls", "class", "class_id", "class_name", "category", "target")
NO_LABEL = "none"  # in place of a column's name
NUMBER = re.compile(r"0|[1-9]\d{0,17}")
WITH_POINT = re.compile(r"[+-]?(\d+\.\d*|\.?\d+)(e[+-]?\d+)?", re.IGNORECASE)
MINUS_ONE = "-1"  # what data sets without labels often say
MOST_CLASSES = 1 << 20
NAMES_SAID = 5
# Texts that nearly every sample has to itself are captions; so many numbers are not classes either.
MANY_WORDS, MANY_NUMBERS, WORDS_HELD = 100, 1000, 1 << 16
SEVERAL = 10  # labels from which on it is odd that nearly every sample has its own


class WrittenLabels:
    """Labels as they are written, each word kept once. The empty word stands for no label."""

    def __init__(self) -> None:
        self.codes, self.words = array("i"), dict[str, int]()

    def __len__(self) -> int:
        return len(self.codes)

    def add(self, word: str) -> None:
        self.codes.append(self.words.setdefault(word, len(self.words)))

    @property
    def are_captions(self) -> bool:
        """Whether there are far too many words for classes."""
        return len(self.words) > WORDS_HELD and 2 * len(self.words) > len(self.codes)


class Classes(NamedTuple):
    """What labels come to.

    Attributes:
        names: of the classes.
        places: class of every written word, int32.
        notes: what a person should know of it.
    """

    names: list[str]
    places: np.ndarray
    notes: list[str]


def classes_of(words: Sequence[str], counts: np.ndarray, source: str, where: str, guessed: bool) -> Classes:
    """The classes that written labels stand for.

    Whole numbers are the classes themselves, 0 to the largest; anything else are names, whose classes are in their order.

    Args:
        words: each once.
        counts: samples of each, of which there are some.
        source: where the labels stand, in words.
        where: the images lie.
        guessed: whether nobody has named that source.

    Raises:
        UserError: they are no labels, only some of the samples have one, or a number is below 0, beyond :data:`MOST_CLASSES`, or written
            with a decimal point.
    """
    total, here = int(counts.sum()), f"the labels of {where} ({source})"
    if set(words) <= {MINUS_ONE}:
        return Classes([], np.zeros(len(words), np.int32), [])
    numbers = all(NUMBER.fullmatch(word) for word in words)
    if guessed and len(words) > (MANY_NUMBERS if numbers else MANY_WORDS) and 2 * len(words) > total:
        raise captions(len(words), total, source, where)
    notes = []
    if len(words) >= SEVERAL and 2 * len(words) > total:
        notes.append(
            f"there are {len(words)} labels for {total} images: where these are captions, "
            f"data.label_column={NO_LABEL} reads the images without them"
        )
    if numbers:
        places = np.array([int(word) for word in words])
        if (most := int(places.max())) >= MOST_CLASSES:
            raise UserError(
                f"{here} go up to {most}, and would be that many classes: number them from 0, or write words"
            )
        if missing := sorted(set(range(most + 1)) - set(places.tolist())):
            named = ", ".join(map(str, missing[:NAMES_SAID])) + (" and more" if len(missing) > NAMES_SAID else "")
            notes.append(
                f"{here} are numbers up to {most}, and {len(missing)} of these classes have no image ({named})"
            )
        return Classes([str(number) for number in range(most + 1)], places.astype(np.int32), notes)
    if fraction := next((word for word in words if "." in word), ""):
        if all(WITH_POINT.fullmatch(word) for word in words):
            raise UserError(f"{here} are numbers with a decimal point, such as {fraction}: write whole ones")
    if MINUS_ONE in words and all(NUMBER.fullmatch(word) for word in words if word != MINUS_ONE):
        raise UserError(
            f"{here} are -1, which is none, for {counts[list(words).index(MINUS_ONE)]} of {total} images: leave these out"
        )
    return sorted_classes(words)._replace(notes=notes)


def sorted_classes(words: Sequence[str]) -> Classes:
    """Classes by name, in the names' order."""
    names = sorted(words)
    places = {name: place for place, name in enumerate(names)}
    return Classes(names, np.array([places[word] for word in words], np.int32), [])


def captions(words: int, total: int, source: str, where: str) -> UserError:
    """The mistake of texts that are no labels."""
    return UserError(
        f"{where} holds {words} different texts for {total} images as labels ({source}), which are captions and no classes: write "
        "data.label_column=none for images without labels, or name what holds them"
    )


def classes_of_words(
    words: Sequence[str],
    counts: np.ndarray,
    source: str,
    where: str,
    first_without: str,
    guessed: bool,
    images_from: str = "",
) -> Classes:
    """:func:`classes_of` words of which the empty one stands for no label; without any label all images are one class.

    ``images_from`` names the column of the images, where that was guessed.

    Raises:
        UserError: as there, or some of the samples have no label, ``first_without`` being the first of them, or none has although somebody
            has named their source.
    """
    total = int(counts.sum())
    if list(words) == [""]:
        if not guessed:
            raise UserError(f"the images in {where} have no label in the {source}, which data.label_column asks for")
        return unlabelled(where, total, 1, images_from=images_from)
    if "" in words:
        missing = counts[list(words).index("")]
        raise UserError(
            f"of {total} images in {where} {counted(missing, 'has', 'have')} no label ({source}), first {first_without}: add these labels, or write "
            f"data.label_column={NO_LABEL}"
        )
    made = classes_of(words, counts, source, where, guessed)
    if not made.names:
        return unlabelled(where, total, len(words), images_from=images_from)
    return made._replace(notes=[origin(where, total, len(made.names), source, images_from), *made.notes])


def origin(where: str, images: int, classes: int, source: str, images_from: str = "") -> str:
    """What a place holds: how many images of how many classes, where the labels stand, and where the images, if that was guessed."""
    there = counted(images, "image", "images") + (f" ({images_from})" if images_from else "")
    return f"{where} has {there} of {counted(classes, 'class', 'classes')}, whose labels come from {source}"


def unlabelled(where: str, images: int, words: int, name: str = "", images_from: str = "") -> Classes:
    """One class, called as the place is unless it has a name."""
    name, column = name or place_name(where), f" ({images_from})" if images_from else ""
    of_one = "is" if images == 1 else "are"
    said = f"{where} says no labels: its {counted(images, 'image', 'images')}{column} {of_one} one class, '{name}'"
    return Classes([name], np.zeros(words, np.int32), [said])


def choose_column(
    names: Sequence[str], asked_for: str, usual: Sequence[str], where: str, option: str, needed: bool = False
) -> str:
    """The column that ``asked_for`` names, or the only one with one of the ``usual`` names; empty where there is none.

    Raises:
        UserError: there is no such column, several may be meant, or none is although one is ``needed``.
    """
    if asked_for == NO_LABEL and not needed:
        return ""
    if asked_for:
        if asked_for not in names:
            raise UserError(f"{where} has no column '{asked_for}' ({option}) but {', '.join(names)}")
        return asked_for
    found = [name for name in names if name.lower() in usual]
    if len(found) > 1:
        raise UserError(
            f"{where} has the columns {', '.join(found)}, each of which may be meant: write {option}={found[0]}, say"
        )
    if not found and needed:
        raise UserError(
            f"{where} has no column of a usual name ({', '.join(usual)}) but {', '.join(names)}: {option}= names it"
        )
    return found[0] if found else ""


def written_label(value: object, where: str) -> str:
    """A label of JSON or of a table as a word; empty for none.

    Raises:
        UserError: it is neither a whole number nor a word.
    """
    if value is None or (isinstance(value, str | int) and not isinstance(value, bool)):
        return "" if value is None else str(value).strip()
    raise UserError(f"the label {where} is no number and no word: {one_line(ValueError(value), 60)}")
