"""A tokenizer in a folder: an autoencoder of this project, trained here or imported, or one of diffusers'."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from flowprior.run.files import read_json
from tokenizer.autoencoder import Autoencoder
from tokenizer.diffusers_kl import DiffusersAutoencoder, is_diffusers

Tokenizer: TypeAlias = Autoencoder | DiffusersAutoencoder


def load_tokenizer(folder: Path, size: int) -> Tokenizer:
    """In evaluation mode on the CPU; one of diffusers' takes images of ``size`` pixels, and one of ours those that it was made for.

    Raises:
        UserError: the folder is neither, is damaged, or has no whole map of such images.
    """
    if is_diffusers(read_json(folder / "config.json", "tokenizer's config")):
        return DiffusersAutoencoder.load(str(folder)).at(size)
    return Autoencoder.load(folder)
