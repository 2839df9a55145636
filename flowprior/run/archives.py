"""Arrays from other people: ``.npy``, ``.npz`` and ``.pt``. Sizes are checked before memory is taken, and no code is run."""

from __future__ import annotations

import io
import re
import warnings
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowprior.errors import UserError
from flowprior.run.files import damage

# Deflate makes a thousand bytes of one, at most. Arrays that are worth keeping are nowhere near that.
LARGEST_EXPANSION = 200
ALWAYS_ALLOWED_BYTES = 64 << 20
PIECE_BYTES = 16 << 20


def check_expansion(path: Path, what: str) -> None:
    """A :class:`UserError` for a zip file that is damaged, or that would take far more memory than it takes on the disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # of a damaged directory: zipfile and struct have several
        raise UserError(f"the {what} {path} cannot be read ({damage(path, error)})") from error
    unpacked = sum(member.file_size for member in members)
    if unpacked > ALWAYS_ALLOWED_BYTES + LARGEST_EXPANSION * path.stat().st_size:
        raise UserError(
            f"the {what} {path} would unpack to {unpacked / 1e9:.1f} GB, and was not: get it from its source"
        )


def is_archive(path: str | Path) -> bool:
    """Whether ``path`` has a zip file's directory; one that is damaged counts as none."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of several disks, it says
        return False


def archive_members(path: str | Path) -> list[str]:
    """The names of the files in an ``.npz``; none where it cannot be read."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (
        Exception
    ):  # of a damaged directory: zipfile and struct have several; whoever reads the arrays names the file
        return []


def read_arrays(path: Path, what: str, wanted: Container[str] | None = None) -> dict[str, np.ndarray | None]:
    """The arrays in an ``.npz`` by name; None for those that are not ``wanted``, which are not read.

    Raises:
        UserError: it is damaged, a bomb, or holds objects.
    """
    check_expansion(path, what)
    arrays: dict[str, np.ndarray | None] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if wanted is not None and name not in wanted:
                    arrays[name] = None
                    continue
                with archive.open(member) as file:
                    arrays[name] = _read_array(file, member.file_size)
    except Exception as error:  # of a damaged file: zipfile, the decompressors and numpy's header parser have a dozen
        raise UserError(f"the {what} {path} cannot be read ({damage(path, error)})") from error
    return arrays


def map_array(path: Path, what: str) -> np.ndarray:
    """The array in an ``.npy``, memory-mapped for reading.

    Raises:
        UserError: it is damaged or holds objects.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive of arrays: call it .npz")
        return array
    except Exception as error:  # of a damaged file: numpy's header parser fails in a dozen ways
        raise UserError(f"the {what} {path} cannot be read ({damage(path, error)})") from error


def _read_array(file: Any, size: int) -> np.ndarray:
    """The array in a member of ``size`` bytes, which is what its header must ask for."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds objects, not numbers")
    count = 1
    for length in shape:  # in whole numbers that do not overflow
        count *= length
    if count * dtype.itemsize > size:
        raise ValueError(f"an array of shape {shape} in {size} bytes")
    data = np.empty(count * dtype.itemsize, np.uint8)
    view, filled = memoryview(data), 0
    while filled < len(view) and (got := file.readinto(view[filled : filled + PIECE_BYTES])):
        filled += got
    if filled < len(view):
        raise ValueError("it ends within the array")
    if file.read(1):  # to the end, where zipfile compares the checksum
        raise ValueError(f"more than an array of shape {shape}")
    return data.view(dtype).reshape(shape, order="F" if fortran else "C")


def load_pt(path: Path, what: str, **options: Any) -> Any:
    """What ``torch.load`` reads from ``path`` without running code; options as there.

    Raises:
        UserError: it is damaged, a bomb, or holds more than tensors and plain values.
    """
    source: Path | io.BytesIO = path
    if is_archive(path):
        check_expansion(path, what)
    elif path.is_file():
        # The format before zip, which cannot be mapped: a file takes the memory that a length in it asks for.
        options.pop("mmap", None)
        source = io.BytesIO(path.read_bytes())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of protocols other than torch.save's: what matters is whether it can be read
            return torch.load(source, weights_only=True, **options)
    except Exception as error:  # of a damaged file: the reader's stack machine fails in a dozen ways
        if named := re.search(r"GLOBAL (\S+)", str(error)):
            raise UserError(_holds_objects(path, what, named[1])) from error
        raise UserError(f"the {what} {path} is damaged ({_in_short(path, error)}): restore or delete it") from error


def _in_short(path: Path, error: Exception, limit: int = 160) -> str:
    """The first sentence of :func:`damage`, or the error's type where that is longer than ``limit``: torch goes on with advice to read the file
    unsafely."""
    sentence = re.split(r"(?<=\w)\.(?: |$)", damage(path, error))[0]
    return sentence if len(sentence) < limit else type(error).__name__


def _holds_objects(path: Path, what: str, kind: str) -> str:
    alone = "the dictionary of its tensors alone (of a whole module, its state_dict())"
    if kind.startswith("numpy"):
        alone = "a dictionary of its tensors, with torch.as_tensor(...) around what is numpy's"
    return (
        f"the {what} {path} holds Python objects ({kind}) beside tensors, and to read those is to run code: if you trust its source, "
        f"read it by torch.load('{path.name}', weights_only=False), torch.save {alone}, and name that file"
    )
