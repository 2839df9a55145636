"""Files that are whole or not there: written under a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from flowprior.errors import UserError, one_line

LARGEST_JSON_BYTES = 64 << 20
LARGEST_SIZE = 1 << 24  # of one dimension of a network
SPARE_BYTES = 1 << 20  # for names, folders and what else a file system keeps beside the data


# What readers of archives, pickles, safetensors and arrays call a file that they cannot follow to its end.
READERS_WORDS = re.compile(
    r"PytorchStream|deserializ|weights only|unable to load weights|load key|"
    r"central directory|zip|EOF|data left|mmap length|out of input|magic|pickle|CRC|decompress|seek",
    re.IGNORECASE,
)


def damage(path: Path, error: Exception) -> str:
    """What is wrong with a file that its reader failed at: in plain words where ``error`` tells of the reader's own workings."""
    if path.is_file() and path.stat().st_size == 0:
        return "it is empty"
    if isinstance(error, OSError) and error.filename:  # of opening it, and the words may be the path's
        return one_line(error)
    if isinstance(error, (SafetensorError, EOFError, struct.error)) or READERS_WORDS.search(str(error)):
        return "it is cut short, or bytes of it have changed"
    return one_line(error)


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """A :class:`UserError` that names ``what`` unless the disk of ``folder``, which need not be there yet, has the room for it."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed_bytes + SPARE_BYTES:
        raise UserError(
            f"{what} takes {_amount(needed_bytes)} and {_amount(free)} are free in {folder}: make room there, then run the same "
            f"command again, or write run_dir=<a folder on another disk>"
        )


def _amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` so that ``path`` holds either what it held before or all of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    JSON has no NaN and no infinities: such numbers in an object become null, and its entry ``not_finite`` says which they were.
    """
    odd: dict[str, str] = {}
    strict = _finite(value, "", odd)
    if odd and isinstance(strict, dict):
        strict = {**strict, "not_finite": odd}
    write_bytes(path, (json_text(strict, indent=2) + "\n").encode())


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON that every reader takes.

    Raises:
        ValueError: a number in it is not finite.
    """
    return json.dumps(value, indent=indent, allow_nan=False)


def _finite(value: Any, name: str, odd: dict[str, str]) -> Any:
    """``value`` with None for every number that is not finite; ``odd`` gets these, by the names that lead to them."""
    if isinstance(value, dict):
        return {key: _finite(part, f"{name}.{key}" if name else str(key), odd) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part, f"{name}[{place}]", odd) for place, part in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        odd[name] = str(value)
        return None
    return value


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; a :class:`UserError` that names ``what`` and the file if there is none."""
    try:
        if path.stat().st_size > LARGEST_JSON_BYTES:
            raise ValueError(f"it has {_amount(path.stat().st_size)}")
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"there is no {what} at {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"the {what} {path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"the {what} {path} must hold a JSON object")
    return value


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask says: the library writes files that only their owner can read
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary, metadata)
        temporary.chmod(mode)
        flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_tensors(path: Path, what: str) -> dict[str, torch.Tensor]:
    """The tensors in a safetensors file, on the CPU; a :class:`UserError` that names ``what`` and the file if it cannot be read."""
    if not path.is_file():
        raise UserError(f"there is no {what} at {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"the {what} {path} is damaged ({damage(path, error)}): restore or delete it") from error


def tensors_metadata(path: Path) -> dict[str, str]:
    """The texts that stand beside the tensors in a safetensors file; none where the file is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}


def load_weights(module: torch.nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Put ``tensors`` into ``module``, every name and shape matching; a :class:`UserError` that names ``what`` otherwise."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"{what} does not fit its own config: {one_line(error, limit=300)}") from error


def build_saved(
    make: Callable[[], torch.nn.Module], sizes: Any, tensors: dict[str, torch.Tensor], what: str
) -> torch.nn.Module:
    """The module that ``make`` builds, with ``tensors`` in it; :class:`UserError` that names ``what`` where they do not fit.

    It is built on the meta device first, so that sizes which are not the tensors' take no memory.

    Args:
        make: builds the module from its saved config.
        sizes: that config, nested plain values.
        tensors: its weights and buffers, as :func:`read_tensors` reads them.
        what: it is, and where.
    """
    try:
        for name, value in _numbers(sizes):
            if value > (len(tensors) if "depth" in name else LARGEST_SIZE):
                raise ValueError(f"{name} {value}")
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in make().state_dict().items()}
    except UserError:
        raise
    except Exception as error:  # whatever a network says to sizes that are none
        raise UserError(f"{what} has a damaged config ({one_line(error)})") from error
    there = {name: tuple(value.shape) for name, value in tensors.items()}
    if differing := sorted(name for name in wanted | there if wanted.get(name) != there.get(name)):
        raise UserError(f"{what} does not fit its own config: {', '.join(differing[:4])}")
    module = make()
    load_weights(module, tensors, what)
    return module


def _numbers(sizes: Any, name: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(sizes, dict):
        for key, value in sizes.items():
            yield from _numbers(value, str(key))
    elif isinstance(sizes, list | tuple):
        for value in sizes:
            yield from _numbers(value, name)
    elif isinstance(sizes, int | float):
        yield name, sizes


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(1 << 22), b""):
            digest.update(piece)
    return digest.hexdigest()


def tensors_fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """16 hex digits of names, dtypes, shapes and raw bytes: equal for equal tensors, whatever file they came from."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
