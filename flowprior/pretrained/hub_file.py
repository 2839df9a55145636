"""Single files of Hugging Face hub repositories, with one line that says what to do where there is no network."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from flowprior.errors import UserError, one_line


class NoSuchFile(Exception):
    """The repository is there, and has no such file."""


def hub_file(repository: str, file: str, remedy: str, revision: str = "main", cached_only: bool = False) -> Path:
    """The local path of one file of a hub repository, fetched into the hub's cache if it is not there.

    Args:
        repository: ``user/name``.
        file: its name in the repository.
        remedy: what a person may write instead, after "put it there, or".
        revision: branch, tag or commit.
        cached_only: ask no network.

    Raises:
        NoSuchFile: the repository has no such file.
        UserError: the file is not on this machine and cannot be fetched.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with _quiet_hub():
            return Path(hf_hub_download(repository, file, revision=revision, local_files_only=cached_only))
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            raise NoSuchFile(f"{repository} has no file {file}") from error
        reason = "no connection" if not cached_only else "not in the cache"
    except (OSError, ValueError) as error:
        reason = one_line(error)
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    raise UserError(
        f"{file} of {repository} is not on this machine and cannot be fetched from {constants.ENDPOINT}/{repository} ({reason}): "
        f"fetch it where there is a network (`hf download {repository} {file}`) and put that HF_HOME ({home}) here, or {remedy}"
    )


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Within, the hub's client does not report each of its retries."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
