"""A tokenizer by its place: an autoencoder of this project, trained here or imported, one of diffusers', or one's own by a Python file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from flowprior.run.files import read_json
from tokenizer.autoencoder import Autoencoder
from tokenizer.diffusers_kl import DiffusersAutoencoder, is_diffusers
from tokenizer.python_file import PythonAutoencoder, is_python_file

Tokenizer: TypeAlias = Autoencoder | DiffusersAutoencoder | PythonAutoencoder


def load_tokenizer(folder: Path, size: int) -> Tokenizer:
    """In evaluation mode on the CPU; one of ours takes images of the size that it was made for, and the others of ``size`` pixels.

    Raises:
        UserError: it is none of them, is damaged, or fails at such images.
    """
    if is_python_file(folder):
        return PythonAutoencoder.load(folder).at(size)
    if is_diffusers(read_json(folder / "config.json", "tokenizer's config")):
        return DiffusersAutoencoder.load(str(folder)).at(size)
    return Autoencoder.load(folder)
