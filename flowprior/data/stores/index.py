"""The index of shards: of every sample where it lies, how long it is, and its class; a memory-mapped file that processes share.

The file is in the safetensors format. A sample takes 24 bytes and its name, and 8 more where archives may be compressed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from flowprior.data.stores.shard_files import FileStamp
from flowprior.run.files import flush_to_disk

FORMAT_VERSION = "1"
DTYPES = {"I64": np.int64, "I32": np.int32, "U8": np.uint8}
SECONDS_OF_A_DEAD_WRITER = 3600.0
Columns = dict[str, Callable[[], Iterable[np.ndarray]]]  # each in parts that follow each other


@dataclass
class ShardIndex:
    """The samples of some shards, shard by shard.

    Attributes:
        offsets: ``(N,)`` int64, where a sample's image begins in its shard; in a zip file, what leads to it.
        sizes: ``(N,)`` int32, bytes of the encoded image.
        labels: ``(N,)`` int32.
        name_ends: ``(N,)`` int64, where the names end in ``names (K,)`` uint8.
        starts: ``(S,)`` int64, the first sample of every shard.
        packed, checks: ``(N,)`` int32, bytes of the image in a zip file and the bits of its CRC-32; of other shards without entries.
        class_names: of the classes.
        notes: what a person should know of the samples.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    name_ends: np.ndarray
    names: np.ndarray
    starts: np.ndarray
    packed: np.ndarray
    checks: np.ndarray
    class_names: list[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, index: int) -> bytes:
        return self.names[self.name_ends[index - 1] if index else 0 : self.name_ends[index]].tobytes()


COLUMNS = {
    "offsets": "I64",
    "starts": "I64",
    "name_ends": "I64",
    "sizes": "I32",
    "labels": "I32",
    "packed": "I32",
    "checks": "I32",
    "names": "U8",
}


def index_made_from(kind: str, files: Iterable[tuple[str, FileStamp]], *options: object) -> str:
    """16 hex digits of names, sizes and times of change of the files, and of the options by which they are read."""
    return hashlib.sha256(repr((FORMAT_VERSION, kind, list(files), options)).encode()).hexdigest()[:16]


def write_index(path: Path, columns: Columns, about: dict[str, object]) -> None:
    """Write an index, whole or not at all, and without holding a second one in memory.

    Args:
        path: of the file.
        columns: by name.
        about: plain values: ``made_from``, ``class_names``, ``notes``.

    Raises:
        OSError: the file cannot be written.
    """
    header, at = {}, 0
    for name, dtype in COLUMNS.items():
        length = sum(map(len, _parts(columns, name)))
        end = at + length * np.dtype(DTYPES[dtype]).itemsize
        header[name] = {"dtype": dtype, "shape": [length], "data_offsets": [at, end]}
        at = end
    written = {
        "format": FORMAT_VERSION,
        "about": json.dumps(about, allow_nan=False),
        "checksum": _checksum(columns, about),
    }
    text = json.dumps({"__metadata__": written, **header}, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    # Two nodes may write on one disk, with processes of one number.
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in COLUMNS:
                for part in _parts(columns, name):
                    file.write(part.data)
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    for left in path.parent.glob(f"{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > SECONDS_OF_A_DEAD_WRITER:
                left.unlink()


def read_index(path: Path, made_from: str, shard_bytes: Sequence[int]) -> ShardIndex | None:
    """The index in a file, memory-mapped; None where it is not there, damaged, or of other shards.

    Args:
        path: of the file.
        made_from: what the index must be of, see :func:`index_made_from`.
        shard_bytes: sizes of the shards.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            about = json.loads(metadata.get("about", "{}"))
            if metadata.get("format") != FORMAT_VERSION or about.get("made_from") != made_from:
                return None
            columns = {name: file.get_tensor(name) for name in COLUMNS}
        columns = {name: _array(column, COLUMNS[name]) for name, column in columns.items()}
        if metadata.get("checksum") != _checksum({name: lambda c=c: [c] for name, c in columns.items()}, about):
            return None
        index = ShardIndex(**columns, class_names=about["class_names"], notes=about["notes"])
        return index if _fits(index, shard_bytes) else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _array(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    array = tensor.numpy()
    if array.ndim != 1 or array.dtype != DTYPES[dtype]:
        raise ValueError(f"a column of {array.dtype}")
    return array


def _checksum(columns: Columns, about: dict[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, allow_nan=False).encode())
    for name in COLUMNS:
        for part in _parts(columns, name):
            digest.update(part.data)
    return digest.hexdigest()


def _parts(columns: Columns, name: str) -> Iterator[np.ndarray]:
    return (np.ascontiguousarray(part, DTYPES[COLUMNS[name]]) for part in columns[name]())


def _fits(index: ShardIndex, shard_bytes: Sequence[int]) -> bool:
    """Whether every number lies where it must."""
    count, ends = len(index), np.append(index.starts[1:], len(index))
    lengths = {len(index.sizes), len(index.labels), len(index.name_ends)}
    if not count or lengths != {count} or len(index.starts) != len(shard_bytes) or len(index.packed) not in (0, count):
        return False
    if len(index.checks) != len(index.packed) or index.starts[0] != 0 or (index.starts > ends).any():
        return False
    if (
        index.name_ends[0] < 0
        or (index.name_ends[1:] < index.name_ends[:-1]).any()
        or index.name_ends[-1] != len(index.names)
    ):
        return False
    names = index.class_names
    if not names or not all(isinstance(name, str) for name in [*names, *index.notes]):
        return False
    if index.labels.min() < 0 or index.labels.max() >= len(names) or min(index.offsets.min(), index.sizes.min()) < 0:
        return False
    stored = index.packed if len(index.packed) else index.sizes
    for first, end, size in zip(index.starts.tolist(), ends.tolist(), shard_bytes):
        part = slice(first, end)
        if first < end and (stored[part].min() < 0 or (index.offsets[part] > size - stored[part]).any()):
            return False
    return True
