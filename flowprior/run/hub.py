"""Folders of weights and JSON to and from the Hugging Face hub."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowprior.errors import UserError, one_line

SAVED_FILES = ["model.safetensors", "config.json"]


def saved_folder(name_or_folder: str | Path, what: str, within: str = "", **download_options: Any) -> Path:
    """A folder that is here, or the copy in the hub's cache of the repository ``user/name``, fetched if need be.

    Args:
        name_or_folder: either.
        what: it is, for the message.
        within: the folder inside either that is meant; all of it without one.
        download_options: of ``huggingface_hub.snapshot_download`` (``revision``, ``cache_dir``, ``token``, ...).

    Raises:
        UserError: it is neither.
    """
    if Path(name_or_folder).is_dir():
        return Path(name_or_folder) / within
    from huggingface_hub import snapshot_download

    try:
        files = [f"{within}/{file}".lstrip("/") for file in SAVED_FILES]
        return Path(snapshot_download(str(name_or_folder), allow_patterns=files, **download_options)) / within
    except (OSError, ValueError) as error:
        raise UserError(
            f"no {what} at {name_or_folder}: it is neither a folder here nor to be had from the hub "
            f"(HF_HOME={os.environ.get('HF_HOME', '~/.cache/huggingface')})"
        ) from error


def push_folder(
    save: Callable[[Path], None], name: str, what: str, *, private: bool = False, token: str | None = None
) -> str:
    """Upload what ``save`` writes into a folder to the hub as ``user/name``, made if need be; returns where it is.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        try:
            hub.create_repo(name, private=private, exist_ok=True)
            hub.upload_folder(repo_id=name, folder_path=folder, commit_message=f"Upload {what}")
        # The errors of the hub's library, and of the HTTP client below it, differ between its versions.
        except Exception as error:
            raise UserError(f"cannot upload to {name}: {one_line(error, limit=200)}") from error
    return f"{hub.endpoint}/{name}"
