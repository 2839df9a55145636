"""diffusers' ``AutoencoderKL``: SD's and FLUX's autoencoders, and what others have exported to it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.errors import UserError, one_line
from flowprior.run.files import damage, file_sha256, tensors_fingerprint
from tokenizer.autoencoder import Encoded
from tokenizer.latent_form import Sizes, as_map, as_tokens

CLASSES = ("AutoencoderKL", "AutoencoderKLFlux2")


def is_diffusers(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` is that of one of :data:`CLASSES`."""
    return config.get("_class_name") in CLASSES


def weights_fingerprint(folder: Path) -> str:
    """16 hex digits of the weight files of such an autoencoder, without loading it; a :class:`UserError` where it has none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"the autoencoder {folder} has no .safetensors file of weights: save it with save_pretrained")
    return file_sha256(files[0])[:16] if len(files) == 1 else "-".join(file_sha256(file)[:8] for file in files)


class DiffusersAutoencoder(nn.Module):
    """Images ``(B, 3, H, H)`` to the posterior's means as tokens ``(B, h w, C)``, and back; neither shifted nor scaled.

    Attributes:
        config: sizes, of images of the side that :meth:`at` has set.
        places: (h, w) of the tokens; of the last images that were encoded, where no side was set.
        latent_maps: none.
    """

    latent_maps = ()

    def __init__(self, model: nn.Module, where: str) -> None:
        super().__init__()
        self.model, self.where, self.places = model, where, ()
        self.config = Sizes(0, 0, model.config.latent_channels, gaussian=True)

    def at(self, size: int) -> DiffusersAutoencoder:
        """Itself, for images of ``size`` pixels on a side only; a :class:`UserError` where they have no whole map."""
        factor = 2 ** (len(self.model.config.block_out_channels) - 1)
        if size % factor:
            raise UserError(
                f"{self.where} makes a map of 1 / {factor} of the image: data.size={size} is no multiple of that"
            )
        self.places = (size // factor,) * 2
        self.config = self.config._replace(image_size=size, tokens=self.places[0] ** 2)
        return self

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of every weight."""
        return tensors_fingerprint(self.model.state_dict())

    def posterior(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Mean and log-variance ``(B, h w, C)``; with ``noise`` of that shape the latents are drawn."""
        distribution = self._distribution(images)
        mean, logvar = as_tokens(distribution.mean), as_tokens(distribution.logvar)
        latents = mean if noise is None else mean + (0.5 * logvar).exp() * noise
        return Encoded(latents, mean, logvar)

    def encode(self, images: Tensor) -> Tensor:
        return self.posterior(images).latents  # (B, h w, C)

    def _distribution(self, images: Tensor) -> Any:
        try:
            distribution = self.model.encode(images).latent_dist  # of maps (B, C, h, w)
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"{self.where} takes no images of data.size={images.shape[-1]} ({one_line(error)})"
            ) from error
        self.places = tuple(distribution.mean.shape[2:])
        return distribution

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(as_map(latents, self.places)).sample  # (B, 3, H, H)

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
        log = diffusers.utils.logging
        verbosity = log.get_verbosity()
        log.set_verbosity(log.CRITICAL)  # what is wrong is said once, here
        try:
            config = diffusers.AutoencoderKL.load_config(source, **options)
            family = getattr(diffusers, config["_class_name"])
            model = family.from_pretrained(source, use_safetensors=True, torch_dtype=torch.float32, **options)
        except Exception as error:  # of a damaged folder: its readers raise a dozen kinds
            raise UserError(f"the autoencoder {where} cannot be read by diffusers ({damage(folder, error)})") from error
        finally:
            log.set_verbosity(verbosity)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise UserError(f"the autoencoder {where} lacks weights that its config asks for")
        return cls(model.eval().requires_grad_(False), where)
