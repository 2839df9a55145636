"""diffusers' ``AutoencoderKL``: SD's and FLUX's autoencoders, and what others have exported to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.errors import UserError, one_line

CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2")


def is_diffusers(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is that of one of :data:`CLASSES`."""
    return config.get("_class_name") in CLASSES


class DiffusersAutoencoder(nn.Module):
    """Images ``(B, 3, H, H)`` to the posterior's means as tokens ``(B, h w, C)``, and back; neither shifted nor scaled."""

    def __init__(self, model: nn.Module, where: str) -> None:
        super().__init__()
        self.model, self.where, self.places = model, where, ()

    @property
    def config(self) -> Any:
        """diffusers' own."""
        return self.model.config

    def encode(self, images: Tensor) -> Tensor:
        try:
            maps = self.model.encode(images).latent_dist.mode()  # (B, C, h, w)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.where} takes no images of data.size={images.shape[-1]} ({one_line(error)})"
            ) from error
        self.places = tuple(maps.shape[2:])
        return maps.flatten(2).transpose(1, 2)  # (B, h w, C)

    def decode(self, latents: Tensor) -> Tensor:
        maps = latents.transpose(1, 2).unflatten(2, self.places)  # (B, C, h, w)
        return self.model.decode(maps).sample  # (B, 3, H, H)

    @classmethod
    def load(cls, where: str, within: str = "") -> DiffusersAutoencoder:
        """From a folder or the hub's ``user/name``, of safetensors only, in evaluation mode on the CPU.

        Raises:
            UserError: diffusers is not installed, or the folder is damaged or not to be had.
        """
        try:
            import diffusers
        except ImportError:
            raise UserError(f"{where} is read by diffusers: pip install diffusers") from None
        folder = Path(where) / within
        source, options = (
            (folder, {"local_files_only": True}) if Path(where).is_dir() else (where, {"subfolder": within})
        )
        try:
            config = diffusers.AutoencoderKL.load_config(source, **options)
            family = getattr(diffusers, config["_class_name"])
            diffusers.utils.logging.set_verbosity_error()
            model = family.from_pretrained(source, use_safetensors=True, torch_dtype=torch.float32, **options)
        except Exception as error:  # of a damaged folder: its readers raise a dozen kinds
            raise UserError(f"the autoencoder {where} cannot be read by diffusers ({one_line(error)})") from error
        if any(parameter.is_meta for parameter in model.parameters()):
            raise UserError(f"the autoencoder {where} lacks weights that its config asks for")
        return cls(model.eval().requires_grad_(False), where)
