"""What lies in a zip file, by its directory alone, and one of its files read by its place.

Stored and deflated files are read, of any number and length (ZIP64). The format is that of PKWARE's APPNOTE 6.3.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from flowprior.data.stores.archive import Member
from flowprior.data.stores.shard_files import Window
from flowprior.errors import UserError
from flowprior.run.archives import ALWAYS_ALLOWED_BYTES, LARGEST_EXPANSION

END, END_64, LOCATOR_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
ENTRY, LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
LONGEST_COMMENT = 0xFFFF
ELSEWHERE = 0xFFFFFFFF  # in place of a number that stands in a ZIP64 record
ENCRYPTED, UTF8 = 0x1, 0x800  # flags
STORED, DEFLATED = 0, 8
METHODS = {1: "shrink", 6: "implode", 9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "zstd", 95: "xz", 98: "PPMd"}
UNIX = 3


class _Damaged(Exception):
    """Why the file cannot be read."""


class ZipArchive:
    """A zip file, see :class:`~flowprior.data.stores.archive.Archive`."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, Window(path)

    def members(self) -> Iterator[Member]:
        try:
            yield from _members(self.file)
        except (_Damaged, struct.error) as error:
            said = "it ends where something should follow" if isinstance(error, struct.error) else error
            raise UserError(f"the zip file {self.path} cannot be read: {said}") from None

    def contents(self, member: Member) -> bytes:
        return read_member(self.file.at, member, str(self.path))


def read_member(read: Callable[[int, int], bytes], member: Member, where: str) -> bytes:
    """The contents of a file in a zip file, unpacked, its checksum compared.

    Args:
        read: bytes of the zip file, by their offset and number.
        member: as the directory has it.
        where: it lies, for a message.

    Raises:
        UserError: it is damaged.
    """
    try:
        method, offset = local_header(read, member)
        data = read(offset, member.packed)
        if method == DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)  # no more than it says
        if len(data) != member.size or zlib.crc32(data) != member.check:
            raise _Damaged("its length or its checksum is another")
    except (_Damaged, struct.error, zlib.error) as error:
        raise UserError(f"{where} is damaged in the zip file ({error}): get or make the file again") from error
    return data


def local_header(read: Callable[[int, int], bytes], member: Member) -> tuple[int, int]:
    """How a file is compressed, and where its bytes begin.

    Raises:
        _Damaged: there is no header of a file.
    """
    header = LOCAL.unpack(read(member.offset, LOCAL.size))
    method, name_length, extra_length = header[3], header[9], header[10]
    if header[0] != b"PK\x03\x04" or method not in (STORED, DEFLATED):
        raise _Damaged("its header is none")
    return method, member.offset + LOCAL.size + name_length + extra_length


def _members(file: Window) -> Iterator[Member]:
    """The files and links in the order of the directory."""
    at, size, count, shift = _directory(file)
    end, found = at + size, 0
    while at < end:
        entry = ENTRY.unpack(file.at(at, ENTRY.size))
        if entry[0] != b"PK\x01\x02":
            raise _Damaged("its directory is damaged")
        system, flags, method, check = entry[1] >> 8, entry[3], entry[4], entry[7]
        name_length, extra_length, comment_length, attributes = entry[10], entry[11], entry[12], entry[15]
        name = file.at(at + ENTRY.size, name_length)
        extra = file.at(at + ENTRY.size + name_length, extra_length)
        packed, unpacked, offset = _large(extra, entry[8], entry[9], entry[16])
        at, found = at + ENTRY.size + name_length + extra_length + comment_length, found + 1
        if name.endswith(b"/"):
            continue
        shown = name.decode(errors="replace")
        if flags & ENCRYPTED:
            raise _Damaged(f"{shown} is encrypted")
        if method not in (STORED, DEFLATED):
            kind = METHODS.get(method, f"method {method}")
            raise _Damaged(
                f"{shown} is packed by {kind}, which is not read: pack it by deflate, or without compression"
            )
        if unpacked > ALWAYS_ALLOWED_BYTES + LARGEST_EXPANSION * packed or (method == STORED and packed != unpacked):
            raise _Damaged(f"{shown} says that {packed} bytes of it become {unpacked}")
        if offset + shift + packed > file.size:
            raise _Damaged(f"{shown} ends behind the file's end: it is truncated")
        is_link = system == UNIX and stat.S_ISLNK(attributes >> 16)
        yield Member(_utf8(name, flags), offset + shift, unpacked, not is_link, packed, check)
    if (found - count) % (1 << 16):  # of which older writers keep the lower half
        raise _Damaged(f"its directory holds {found} files and says {count}")


def _directory(file: Window) -> tuple[int, int, int, int]:
    """Where the directory begins, its bytes and entries, and how far offsets are off where something was put before the archive."""
    start = max(0, file.size - END.size - LONGEST_COMMENT)
    tail = file.at(start, file.size - start)
    place = tail.rfind(b"PK\x05\x06")
    while place >= 0 and (
        len(tail) < place + END.size or END.unpack_from(tail, place)[7] != len(tail) - place - END.size
    ):
        place = tail.rfind(b"PK\x05\x06", 0, place)
    if place < 0:
        raise _Damaged(
            "the directory at its end is missing, so that it is truncated or no zip file: get or make it again"
        )
    _, disk, first_disk, here, count, size, offset, _ = END.unpack_from(tail, place)
    at = start + place
    locator = file.at(at - LOCATOR_64.size, LOCATOR_64.size) if at >= LOCATOR_64.size else b""
    if locator.startswith(b"PK\x06\x07"):
        record = LOCATOR_64.unpack(locator)[2]
        # Something put before the archive shifts the record as well; it is as long as it always is.
        record = record if file.at(record, 4) == b"PK\x06\x06" else at - LOCATOR_64.size - END_64.size
        signature, _, _, _, disk, first_disk, here, count, size, offset = END_64.unpack(file.at(record, END_64.size))
        if signature != b"PK\x06\x06":
            raise _Damaged("its ZIP64 record is damaged")
        at = record
    if disk or first_disk or here != count:
        raise _Damaged("it is one of several parts: join them")
    if at - size - offset < 0:
        raise _Damaged("its directory is not where it says: it is truncated or damaged")
    return at - size, size, count, at - size - offset


def _large(extra: bytes, packed: int, unpacked: int, offset: int) -> tuple[int, int, int]:
    """The numbers of an entry, those that 32 bits do not hold from its ZIP64 record."""
    if ELSEWHERE not in (packed, unpacked, offset):
        return packed, unpacked, offset
    at, numbers = 0, [unpacked, packed, offset]  # in the record's order
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            record = struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length // 8 * 8])
            numbers = [next(record, (number,))[0] if number == ELSEWHERE else number for number in numbers]
            break
        at += 4 + length
    return numbers[1], numbers[0], numbers[2]


def _utf8(name: bytes, flags: int) -> bytes:
    """The name in UTF-8; without the flag that says so it may be in code page 437."""
    if flags & UTF8:
        return name
    try:
        name.decode()
    except UnicodeDecodeError:
        return name.decode("cp437").encode()
    return name
