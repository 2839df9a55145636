"""Fingerprints of images, and those that earlier versions wrote down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flowprior.errors import UserError
from flowprior.notes import note


class ImagesFingerprint(str):
    """16 hex digits of which images these are and what they show.

    Attributes:
        before: what an earlier version, which looked at names and lengths alone, called the same files.
        reads_otherwise: an image that such a version showed otherwise; empty if there is none.
    """

    before: str = ""
    reads_otherwise: str = ""

    @classmethod
    def of(cls, value: str, before: str, reads_otherwise: str) -> ImagesFingerprint:
        made = cls(value)
        made.before, made.reads_otherwise = before, reads_otherwise
        return made


def accept_earlier(kept: Any, now: str, where: Path) -> Any:
    """``kept`` (a text, or a dictionary of plain values) with today's fingerprint in place of the one that an earlier version wrote.

    It says so, since of contents nothing was written down.

    Args:
        kept: what the file ``where`` says.
        now: today's fingerprint; where it is no :class:`ImagesFingerprint`, ``kept`` is returned as it is.
        where: named in the line that is printed.

    Raises:
        UserError: the earlier version showed these images otherwise, a transparent one say.
    """
    before = getattr(now, "before", "")
    if not before or now in str(kept) or before not in str(kept):
        return kept
    if now.reads_otherwise:
        raise UserError(
            f"{where} was written by an earlier version, which read {now.reads_otherwise} otherwise (its depth, transparency or "
            f"orientation): delete {where.parent}, or write run_dir=<another>"
        )
    note(
        f"{where} was written by an earlier version and knows its images by names and lengths: these agree, and contents are not compared"
    )
    if isinstance(kept, dict):
        return {name: str(now) if value == before else value for name, value in kept.items()}
    return kept.replace(before, now)
