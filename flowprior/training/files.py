"""Files that are whole or not there: written under a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from flowprior.errors import UserError


def flush_to_disk(path: Path) -> None:
    """fsync a file, or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
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
    """Write ``value`` as indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file; a :class:`UserError` that names ``what`` and the file if there is none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"there is no {what} at {path}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"the {what} {path} cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"the {what} {path} must hold a JSON object")
    return value


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary, metadata)
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
        raise UserError(f"the {what} {path} is damaged ({error}): restore or delete it") from error


def load_weights(module: torch.nn.Module, tensors: dict[str, torch.Tensor], what: str) -> None:
    """Put ``tensors`` into ``module``, every name and shape matching; a :class:`UserError` that names ``what`` otherwise."""
    try:
        module.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise UserError(f"{what} does not fit its own config: {' '.join(str(error).split())[:300]}") from error


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
