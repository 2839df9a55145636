"""What tar and zip files have in common: members, each with a name, a place and a size."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from flowprior.data.stores.folder_listing import is_system_file


class Member(NamedTuple):
    """A file in an archive."""

    name: bytes
    offset: int  # of its contents, or of what leads to them
    size: int  # bytes
    is_file: bool = True  # or a link, say
    packed: int = -1  # bytes in the archive, where it may be compressed
    check: int = 0  # CRC-32 of the contents, where it may be compressed


class Archive(Protocol):
    """A file of members, while it is looked through."""

    path: Path

    def members(self) -> Iterator[Member]:
        """The files in it, in their order, and what stands for a file without being one; no folders.

        Raises:
            UserError: it is truncated, damaged, or of a kind that is not read.
        """
        ...

    def contents(self, member: Member) -> bytes:
        """Of a small member, such as a label."""
        ...


def data_members(archive: Archive) -> Iterator[Member]:
    """The members of ``archive`` but for a desktop's or an archiver's own, which are passed over as in folders."""
    for member in archive.members():
        name = member.name.removeprefix(b"./").lstrip(b"/")
        parts = (part for part in os.fsdecode(name).split("/") if part != "..")
        if not any(map(is_system_file, parts)):
            yield member if name is member.name else member._replace(name=name)


def named(archive: Archive, member: Member) -> str:
    """A member, for a message."""
    return f"{archive.path}: {os.fsdecode(member.name)}"
