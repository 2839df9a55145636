"""What a file is that is no checkpoint: told by its first bytes, before a reader calls it damaged."""

from __future__ import annotations

from pathlib import Path

from flowprior.run.archives import archive_members, is_archive
from flowprior.run.files import read_json

BEGINNINGS = {  # of files that are taken for checkpoints
    b"\x93NUMPY": "an array of NumPy (.npy)",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF file",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself by `git lfs pull`",
    b"<!DOCTYPE": "a web page: the download went wrong",
    b"<html": "a web page: the download went wrong",
}
LOOKED_AT_BYTES = 512


def other_kind(file: Path) -> str:
    """What ``file`` is, in words, where it is neither what ``torch.save`` wrote nor a safetensors file; empty where it may be."""
    with file.open("rb") as opened:
        start = opened.read(LOOKED_AT_BYTES)
    if not start:
        return "empty"
    for beginning, kind in BEGINNINGS.items():
        if start.startswith(beginning):
            return kind
    if is_archive(file):
        return _kind_of_archive(file)
    if file.suffix == ".safetensors":  # its header is JSON behind 8 bytes
        return "" if start[8:9] == b"{" else _text(start) or "no safetensors file"
    if start[8:9] == b"{" and start[:1] != b"{":
        return "a safetensors file by another name: rename it to .safetensors"
    return _text(start)


def diffusers_class(folder: Path) -> str:
    """The class of diffusers that was saved in ``folder``; empty where none was."""
    for name in ("config.json", "model_index.json"):
        if (folder / name).is_file():
            return str(read_json(folder / name, "config").get("_class_name", ""))
    return ""


def _kind_of_archive(file: Path) -> str:
    members = archive_members(file)
    if any(name.endswith("data.pkl") for name in members):
        return ""
    if members and all(name.endswith(".npy") for name in members):
        return "an archive of NumPy's arrays (.npz)"
    return "a zip archive, and not torch.save's"


def _text(start: bytes) -> str:
    """``text`` where these bytes are nothing else, empty otherwise."""
    whole = start[:-3] if len(start) == LOOKED_AT_BYTES else start  # a letter may be cut at the end
    try:
        letters = whole.decode("utf-8", "strict")
    except UnicodeDecodeError:
        return ""
    return "text" if all(letter.isprintable() or letter.isspace() for letter in letters) else ""
