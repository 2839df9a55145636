"""The trained autoencoder, as stage 3 uses it: encode images for the cache, decode latents to pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from flowprior.data.images import to_uint8
from flowprior.errors import UserError
from generation.config import GenerationConfig
from tokenizer.opening import Tokenizer, load_tokenizer
from tokenizer.python_file import is_python_file


def load_autoencoder(config: GenerationConfig, device: torch.device) -> Tokenizer:
    """The frozen autoencoder of this run.

    Raises:
        UserError: there is none, or it was trained at another image size.
    """
    if not is_python_file(config.autoencoder_folder) and not (config.autoencoder_folder / "config.json").is_file():
        raise UserError(
            f"there is no autoencoder at {config.autoencoder_folder}: run `{config.makes_autoencoder()}` first, "
            "with the same PRESET (its family's, where stage 2 has none of that name) and DATA, or write autoencoder=<folder or Python file>"
        )
    autoencoder = load_tokenizer(config.autoencoder_folder, config.data.size).requires_grad_(False).to(device)
    if config.data.size != autoencoder.config.image_size:
        raise UserError(
            f"data.size is {config.data.size} and the autoencoder in {config.autoencoder_folder} takes {autoencoder.config.image_size} px: "
            f"write data.size={autoencoder.config.image_size}"
        )
    return autoencoder


@torch.no_grad()
def decode_to_uint8(autoencoder: Tokenizer, latents: Tensor, batch: int = 64) -> Tensor:
    """Raw latents ``(N, T, C)`` as uint8 images ``(N, 3, H, H)`` on the CPU."""
    return torch.cat([to_uint8(autoencoder.decode(part)).cpu() for part in latents.split(batch)])
