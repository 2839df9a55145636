"""Is what lies on the disk what would be made now? What it was made from is written down with it, and compared name by name.

All processes look before any writes, and what it was made from is written last, when what was made is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowprior.distributed import World
from flowprior.run.files import read_json, tensors_metadata, write_json

ABSENT = object()


def differing(kept: Any, wanted: dict[str, Any] | str) -> list[str]:
    """The sorted names of what two records of what something was made from do not share; none where they say the same.

    Args:
        kept: as it was written down; anything but a record shares nothing.
        wanted: plain values by name, or one text, whose only name is ``recipe``.
    """
    if isinstance(wanted, str):
        return [] if kept == wanted else ["recipe"]
    kept = kept if isinstance(kept, dict) else {}
    return sorted(name for name in kept | wanted if kept.get(name, ABSENT) != wanted.get(name, ABSENT))


@dataclass(frozen=True)
class Provenance:
    """What something was made from, in a JSON file or a safetensors file's metadata.

    Args:
        file: in which it stands.
        what: that file is, for the line that says it cannot be read.
        entry: of the file; empty: the file holds nothing else.
        of: what was made, where that is another file: without it nothing was.
        updated: puts what an earlier version wrote as today's would.
    """

    file: Path
    what: str
    entry: str = ""
    of: Path | None = None
    updated: Callable[[Any], Any] = lambda kept: kept

    def kept(self) -> Any:
        """What is written down, None where nothing is; a :class:`UserError` where the JSON file is damaged."""
        if not (self.file.is_file() and (self.of or self.file).is_file()):
            return None
        record = tensors_metadata(self.file) if self.file.suffix == ".safetensors" else read_json(self.file, self.what)
        return record.get(self.entry) if self.entry else record

    def differing(self, wanted: dict[str, Any] | str, world: World) -> list[str]:
        """:func:`differing` of what is there and ``wanted``: none where it is current. Nobody returns before all have looked."""
        names = differing(self.updated(self.kept()), wanted)
        world.barrier()
        return names

    def write(self, made_from: dict[str, Any], **others: Any) -> None:
        """Write it down, with ``others``, the further entries of the JSON file."""
        write_json(self.file, {**others, self.entry: made_from} if self.entry else made_from)
