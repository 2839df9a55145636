"""What lies in a tar file, and where: its headers are read, and the contents are leapt over.

POSIX ustar, GNU and PAX archives are read, with their long names. The formats are those of POSIX.1-2017 (pax, ustar) and of GNU tar's manual.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flowprior.data.stores.archive import Member
from flowprior.data.stores.shard_files import Window
from flowprior.errors import UserError

BLOCK = 512
END = bytes(BLOCK)
POSIX_MAGIC = b"ustar\x00"
REGULAR, GNU_LONG_NAME, GNU_LONG_LINK, PAX, PAX_GLOBAL, GNU_SPARSE = b"0\x007", b"L", b"K", b"x", b"g", b"S"
FOLDER = b"5"
WITHOUT_CONTENT = b"123456"  # links, devices, folders, pipes
LARGEST_HEADER = 1 << 20  # bytes of a long name or of PAX records
PADDING = 1 << 20  # zeros behind the end: tapes were written in blocks of up to so many bytes
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}


class _Damaged(Exception):
    """Why the header cannot be read."""


class TarArchive:
    """A tar file, see :class:`~flowprior.data.stores.archive.Archive`."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, Window(path)

    def members(self) -> Iterator[Member]:
        return _members(self.file)

    def contents(self, member: Member) -> bytes:
        return self.file.at(member.offset, member.size)


def _members(file: Window) -> Iterator[Member]:
    """The files, links and devices in a tar file in their order; folders are passed over."""
    at, changes, last = 0, dict[str, bytes](), b""
    while (block := file.at(at, BLOCK)) != END:
        try:
            member, kind, behind = _read_header(file, block, at)
            if kind in (GNU_LONG_NAME, PAX):
                content = file.at(member.offset, member.size)
                changes |= {"path": content.rstrip(b"\0")} if kind == GNU_LONG_NAME else _pax_records(content)
            elif kind not in (GNU_LONG_LINK, PAX_GLOBAL):
                if kind == GNU_SPARSE or any(name.startswith("GNU.sparse") for name in changes):
                    raise _Damaged("it is a sparse file: make the archive anew without --sparse")
                if "size" in changes:
                    member = member._replace(size=_decimal(changes["size"]))
                    behind = _behind(file, member)
                name = changes.get("path", member.name)
                if kind != FOLDER and not name.endswith(b"/"):
                    yield Member(name, member.offset, member.size, kind in REGULAR)
                    last = name
                changes = {}
        except _Damaged as error:
            where = f" at byte {at}{_whose(block, changes, last)}" if at else ""
            raise UserError(f"the tar file {file.path} cannot be read{where}: {error}") from None
        at = behind
    left = file.size - at
    if left > PADDING or file.at(at, left).strip(b"\0"):
        raise UserError(
            f"the tar file {file.path} ends at byte {at} and goes on for {left} more, which no reader would see: "
            "pack what was joined as files of their own"
        )


def _whose(block: bytes, changes: dict[str, bytes], last: bytes) -> str:
    """The member to which a header belongs, for a message; headers that stand before a member's own have no name but that of the last one."""
    name, what = changes.get("path", block[:100].partition(b"\0")[0]), "member"
    if len(block) < BLOCK or block[156:157] in (PAX, PAX_GLOBAL, GNU_LONG_NAME, GNU_LONG_LINK):
        name, what = (changes["path"], "member") if "path" in changes else (last, "behind member")
    return f", {what} '{name.decode(errors='replace')}'" if name else ""


def _read_header(file: Window, block: bytes, at: int) -> tuple[Member, bytes, int]:
    """The member whose header is ``block``, its kind, and where the next header begins."""
    if not at and (kind := next((name for magic, name in COMPRESSED.items() if block.startswith(magic)), "")):
        raise _Damaged(f"it is compressed by {kind}: unpack it once, since images are read by their place in the file")
    if len(block) < BLOCK:
        if at and at >= file.size:
            raise _Damaged("it is truncated, since the mark of its end is missing: get or make it again")
        raise _Damaged("it ends within a header: get or make it again")
    # In the sum its own eight bytes count as spaces.
    if _octal(block[148:156]) != sum(block) - sum(block[148:156]) + 256:
        raise _Damaged("a header's checksum does not fit, so that it is damaged or no tar file")
    kind, name = block[156:157], block[:100].partition(b"\0")[0]
    if block[257:263] == POSIX_MAGIC and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    if kind in WITHOUT_CONTENT:
        return Member(name, at + BLOCK, 0), kind, at + BLOCK
    if kind not in REGULAR + GNU_LONG_NAME + GNU_LONG_LINK + PAX + PAX_GLOBAL + GNU_SPARSE:
        raise _Damaged(f"it is of a kind that is not read ({kind.decode(errors='replace')!r})")
    member = Member(name, at + BLOCK, _number(block[124:136]))
    if kind not in REGULAR and member.size > LARGEST_HEADER:
        raise _Damaged(f"a name of {member.size} bytes")
    return member, kind, _behind(file, member)


def _behind(file: Window, member: Member) -> int:
    """Where the header behind a member begins."""
    if member.offset + member.size > file.size:
        raise _Damaged(
            f"it is truncated: {member.offset + member.size - file.size} bytes are missing; get or make it again"
        )
    return member.offset + -(-member.size // BLOCK) * BLOCK


def _octal(field: bytes) -> int:
    try:
        return int(field.partition(b"\0")[0].strip(b" ") or b"0", 8)
    except ValueError:
        raise _Damaged("a header holds no number where one is wanted") from None


def _number(field: bytes) -> int:
    """Octal digits, or GNU's numbers to the base of 256, which begin with a set bit."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise _Damaged("a header holds a size below 0")
        return int.from_bytes(field[1:], "big")
    if (number := _octal(field)) < 0:
        raise _Damaged("a header holds a size below 0")
    return number


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise _Damaged("a PAX record holds no number where one is wanted")
    return int(text)


def _pax_records(content: bytes) -> dict[str, bytes]:
    """``length key=value`` lines, the length being the line's own."""
    records, at = {}, 0
    while at < len(content) and content[at]:
        digits, space, _ = content[at : at + 20].partition(b" ")
        end = at + _decimal(digits) if space else at
        key, equals, value = content[at + len(digits) + 1 : max(at, end - 1)].partition(b"=")
        if not equals or end > len(content) or content[end - 1] != ord("\n"):
            raise _Damaged("a PAX record is damaged")
        records[key.decode(errors="replace")] = value
        at = end
    return records
