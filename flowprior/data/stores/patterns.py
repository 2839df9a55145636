"""File names written together: ``{000..146}``, ``{a,b}`` and ``*``."""

from __future__ import annotations

import glob
import itertools
import os
import re
from pathlib import Path

from flowprior.data.stores.folder_listing import some_of
from flowprior.errors import UserError
from flowprior.notes import counted

BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
MOST_FILES = 1_000_000


def is_pattern(path: str) -> bool:
    """Whether ``path`` stands for several files, and is not itself the name of one."""
    return any(mark in path for mark in "{*") and not Path(path).exists()


def expand_braces(pattern: str) -> list[str]:
    """Every name that a pattern stands for, in its order; a range keeps the width of its ends.

    Raises:
        UserError: a brace holds neither a range nor words, or there are more than :data:`MOST_FILES`.
    """
    parts, count = [], 1
    for number, text in enumerate(BRACES.split(pattern)):
        parts.append(_alternatives(text, pattern, MOST_FILES // count) if number % 2 else [text])
        count *= len(parts[-1])
        if count > MOST_FILES:
            raise UserError(f"the pattern {pattern} stands for more than {MOST_FILES} files: name fewer")
    return ["".join(chosen) for chosen in itertools.product(*parts)]


def _alternatives(text: str, pattern: str, most: int) -> list[str]:
    if ends := RANGE.fullmatch(text):
        first, last = map(int, ends.groups())
        width = len(ends[1]) if ends[1].startswith("0") or ends[2].startswith("0") else 0
        if not 0 <= last - first <= most:
            raise UserError(f"the range {{{text}}} of the pattern {pattern} must go up, and over {most} files at most")
        return [f"{number:0{width}}" for number in range(first, last + 1)]
    if "," in text:
        return text.split(",")
    raise UserError(
        f"the braces {{{text}}} of the pattern {pattern} hold neither a range such as 000..146 nor words such as a,b"
    )


def matching_files(pattern: str) -> list[Path]:
    """The files that a pattern stands for: by braces in the order of the pattern, all of which must be there; by ``*`` in that of their
    names.

    Raises:
        UserError: one is missing, or comes twice, or there is none.
    """
    found: list[str] = []
    for name in expand_braces(pattern):
        found += sorted(glob.glob(name)) if "*" in name else [name]
    missing = [name for name in found if not Path(name).is_file()]
    if len(missing) == len(found):
        raise UserError(f"no file is called like {pattern}{_beside(pattern)}")
    if missing:
        raise UserError(
            f"{pattern} stands for {len(found)} files, of which {counted(len(missing), 'is', 'are')} not there: {some_of(missing)}; get "
            "them, or write another pattern"
        )
    if len(set(found)) < len(found):
        raise UserError(f"the pattern {pattern} names some files twice")
    return list(map(Path, found))


def _beside(pattern: str) -> str:
    """What to write in place of a pattern that stands for no file, by what lies where it looks."""
    folder = Path(os.path.dirname(re.split(r"[{*]", pattern)[0]))
    if not folder.is_dir():
        return f", since there is no folder {folder}: write where the files lie"
    there = sorted(file.name for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return f": write a pattern of the files in {folder} ({some_of(there) or 'which holds none'})"
