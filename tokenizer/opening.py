"""A tokenizer by its place: an autoencoder of this project, trained here or imported, one of diffusers', or a custom one in a Python file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from flowprior.run.files import read_json
from tokenizer.autoencoder import Autoencoder
from tokenizer.diffusers_kl import DiffusersAutoencoder, is_diffusers
from tokenizer.python_file import PythonAutoencoder, is_python_file

Tokenizer: TypeAlias = Autoencoder | DiffusersAutoencoder | PythonAutoencoder


def load_tokenizer(place: Path, size: int) -> Tokenizer:
    """In evaluation mode on the CPU; one of ours takes images of the size that it was made for, and the others of ``size`` pixels.

    Raises:
        UserError: it is none of them, is damaged, or fails at such images.
    """
    if is_python_file(place):
        return PythonAutoencoder.load(place).at(size)
    if is_diffusers(read_json(place / "config.json", "tokenizer's config")):
        return DiffusersAutoencoder.load(str(place)).at(size)
    return Autoencoder.load(place)
