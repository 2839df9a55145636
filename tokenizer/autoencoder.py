"""A ViT autoencoder whose latent is a short sequence of tokens: (tokens, channels) instead of a feature map."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from flowprior.errors import UserError
from flowprior.run.config import Section, build_config, option
from flowprior.run.files import build_saved, read_json, read_tensors, tensors_fingerprint, write_json, write_tensors
from flowprior.run.hub import push_folder, saved_folder
from flowprior.run.norms import norm_eps, set_norm_eps
from tokenizer.latent_maps import LatentMapConfig
from tokenizer.saved_before import as_saved_before
from tokenizer.tokens import placed, through_blocks
from tokenizer.vit import ViTConfig, build_vit, pixel_statistics

FORMAT_VERSION = 1


@dataclass
class AutoencoderConfig(Section):
    """Sizes of the autoencoder."""

    image_size: int = option(32, "pixels on a side of an image", least=1)
    patch_size: int = option(8, "pixels on a side of a patch", least=1)
    tokens: int = option(8, "latent tokens per image", least=1)
    channels: int = option(8, "channels of a latent token", least=1)
    gaussian: bool = option(False, "encode to a mean and a log-variance (the kl regulariser asks for it by itself)")
    encoder: ViTConfig = option(ViTConfig, "")
    decoder: ViTConfig = option(ViTConfig, "")
    token_std: float = option(
        0.02,
        "std of tokens and positions at initialisation; a larger one shortens a small model's plateau at the start",
    )
    input_mean: tuple[float, ...] = option(
        (),
        "mean per colour, of images in [0, 1], that the encoder's input is normalised with; empty: as pretrained weights want it, or 0.5",
    )
    input_std: tuple[float, ...] = option((), "std that goes with input_mean")
    latent_map: LatentMapConfig = option(LatentMapConfig, "")
    checkpoint_blocks: bool = option(
        False,
        "compute the transformers' blocks again in the backward pass instead of keeping their activations",
        changes_result=False,
    )
    posterior_std: float = option(
        0.0,
        "std of the noise that makes a latent of the encoder's output in training, the same everywhere (simflow asks for it by itself); 0: none",
        least=0,
        below=math.inf,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gaussian and self.posterior_std:
            raise ValueError(
                "gaussian and posterior_std are two posteriors, a learned variance and a fixed one: choose one"
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} does not divide into patches of {self.patch_size} pixels")
        if not {len(self.input_mean), len(self.input_std)} <= {0, 3} or len(self.input_mean) != len(self.input_std):
            raise ValueError("input_mean and input_std are three numbers each, or both empty")
        if self.input_std and not min(self.input_std) > 0:
            raise ValueError("input_std is above 0")
        for section in self.latent_map.chosen:
            section.check(self.tokens, self.channels)

    @property
    def draws(self) -> bool:
        """Whether latents are drawn from a posterior in training."""
        return self.gaussian or self.posterior_std > 0

    def input_statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, per colour of images in [0, 1], that the encoder's input is normalised with."""
        if self.input_mean:
            return self.input_mean, self.input_std
        return pixel_statistics(self.encoder.name) if self.encoder.pretrained else ((0.5,) * 3, (0.5,) * 3)


class Encoded(NamedTuple):
    """What the encoder makes of images."""

    latents: (
        Tensor  # (B, T, C): what the decoder sees; drawn from the posterior in training when there is one, and mapped
    )
    mean: Tensor  # (B, T, C): before the latent maps
    logvar: Tensor | None  # (B, T, C), of a gaussian autoencoder
    code: Tensor | None = None  # (B, T, C or 2 C): the encoder's own output
    metrics: dict[str, Tensor] = {}  # what the latent maps tell


class LatentNoise(NamedTuple):
    """What training does to the latents on their way to the decoder."""

    noise: Tensor  # (B, T, C)
    kept: Tensor | None = None  # (B, 1, 1): the share of the latents themselves; all where there is none

    def on(self, latents: Tensor) -> Tensor:
        """``(B, T, C)`` with the noise."""
        return (latents if self.kept is None else self.kept * latents) + self.noise


class Encoder(nn.Module):
    """Patches and learnable latent tokens through a ViT; the latent tokens' outputs, through one linear layer, are the latent."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.vit = build_vit(config.encoder, config.image_size, config.patch_size, config.token_std)
        width = self.vit.embed_dim
        self.latent_tokens = nn.Parameter(torch.randn(1, config.tokens, width) * config.token_std)
        self.to_latent = nn.Linear(width, config.channels * (2 if config.gaussian else 1))
        self.recompute = config.checkpoint_blocks
        mean, std = config.input_statistics()
        # Images come in [-1, 1]: x * scale + shift is (x / 2 + 1 / 2 - mean) / std.
        self.rescales = set(mean + std) != {0.5}
        scale, shift = [0.5 / s for s in std], [(0.5 - m) / s for m, s in zip(mean, std)]
        for name, values in (("input_scale", scale), ("input_shift", shift)):  # each (3, 1, 1)
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    @property
    def end_layers(self) -> list[nn.Linear]:
        """The one that writes the latents; patches are read by a convolution."""
        return [self.to_latent]

    def forward(self, images: Tensor) -> Tensor:
        if self.rescales:
            images = images * self.input_scale.to(images) + self.input_shift.to(images)  # (B, 3, H, H)
        patches = placed(self.vit, self.vit.patch_embed(images))  # (B, prefix + patches, W)
        tokens = self.latent_tokens.expand(len(images), -1, -1)  # (B, T, W)
        x = through_blocks(self.vit, patches.followed_by(tokens), self.recompute)  # (B, prefix + patches + T, W)
        return self.to_latent(x[:, -tokens.shape[1] :])  # (B, T, C or 2 C)


class Decoder(nn.Module):
    """A mask token for every patch and the projected latents through a ViT; the patches' outputs, through one linear layer, are pixels."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.vit = build_vit(config.decoder, config.image_size, config.patch_size, config.token_std)
        self.vit.patch_embed = nn.Identity()  # there are no pixels to embed: its weights would never see a gradient
        width, self.patch, self.side = self.vit.embed_dim, config.patch_size, config.image_size // config.patch_size
        self.mask_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.from_latent = nn.Linear(config.channels, width)
        self.latent_positions = nn.Parameter(torch.randn(1, config.tokens, width) * config.token_std)
        self.to_pixels = nn.Linear(width, 3 * config.patch_size**2)
        self.recompute = config.checkpoint_blocks

    @property
    def end_layers(self) -> list[nn.Linear]:
        """The one that reads the latents, and the one that writes pixels."""
        return [self.from_latent, self.to_pixels]

    def forward(self, latents: Tensor) -> Tensor:
        patches = placed(self.vit, self.mask_token.expand(len(latents), self.side**2, -1))  # (B, prefix + patches, W)
        x = patches.followed_by(self.from_latent(latents) + self.latent_positions)
        prefix = self.vit.num_prefix_tokens
        x = through_blocks(self.vit, x, self.recompute)[:, prefix : prefix + self.side**2]  # (B, patches, W)
        pixels = self.to_pixels(x)  # (B, patches, 3 patch^2)
        return rearrange(pixels, "b (h w) (p q c) -> b c (h p) (w q)", h=self.side, p=self.patch, c=3)  # (B, 3, H, H)


class Autoencoder(nn.Module):
    """Images ``(B, 3, H, H)`` in [-1, 1] to latents ``(B, T, C)`` and back.

    Args:
        config: sizes.
        about: where it comes from (crop, regulariser, prior's fingerprint, latent statistics): free JSON, kept with the weights.
    """

    def __init__(self, config: AutoencoderConfig, about: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config, self.about = config, dict(about or {})
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        sizes = config.tokens, config.channels
        self.latent_maps = nn.ModuleList(section.build(*sizes) for section in config.latent_map.chosen)

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """What ``torch.compile`` compiles: the transformers' blocks. Blocks of equal shapes share one graph, so that 48 of them compile like two."""
        return [*self.encoder.vit.blocks, *self.decoder.vit.blocks]

    @property
    def replayed_parts(self) -> list[nn.Module]:
        """What ``train.cuda_graphs`` replays: each half as a whole."""
        return [self.encoder, self.decoder]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of every weight."""
        return tensors_fingerprint(self.state_dict())

    def posterior(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Encode; with ``noise (B, T, C)`` an autoencoder with a posterior draws its latents, without it they are the mean."""
        code = self.encoder(images)  # (B, T, C or 2 C)
        latents, mean, logvar = code, code, None
        if self.config.gaussian:
            mean, logvar = code.chunk(2, dim=-1)
            logvar = logvar.clamp(-30, 20)
            latents = mean if noise is None else mean + (0.5 * logvar).exp() * noise
        elif self.config.posterior_std and noise is not None:
            latents = mean + self.config.posterior_std * noise
        metrics: dict[str, Tensor] = {}
        for latent_map in self.latent_maps:
            latents, measured = latent_map(latents)
            metrics |= measured
        return Encoded(latents, mean, logvar, code, metrics)

    def encode(self, images: Tensor) -> Tensor:
        """``(B, 3, H, H)`` in [-1, 1] to latents ``(B, T, C)``: of a posterior the mean.

        Raises:
            ValueError: images of another shape, or not floating-point.
        """
        side = self.config.image_size
        if images.dim() != 4 or images.shape[1:] != (3, side, side) or not images.is_floating_point():
            raise ValueError(
                f"encode takes floating-point images (B, 3, {side}, {side}) in [-1, 1], not {images.dtype} {tuple(images.shape)}"
            )
        return self.posterior(images).latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(B, T, C)`` to images ``(B, 3, H, H)``, in [-1, 1] but for overshoot, which is not clamped.

        Raises:
            ValueError: latents of another shape.
        """
        sizes = (self.config.tokens, self.config.channels)
        if latents.dim() != 3 or latents.shape[1:] != sizes:
            raise ValueError(f"decode takes latents (B, {sizes[0]}, {sizes[1]}), not {tuple(latents.shape)}")
        return self.decoder(latents)

    def forward(
        self, images: Tensor, noise: Tensor | None = None, latent_noise: LatentNoise | None = None
    ) -> tuple[Tensor, Encoded]:
        """Reconstruction and :meth:`posterior`; the decoder, and it alone, is given the latents with ``latent_noise``."""
        encoded = self.posterior(images, noise)
        return self.decoder(encoded.latents if latent_noise is None else latent_noise.on(encoded.latents)), encoded

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``."""
        folder = Path(folder)
        write_tensors(folder / "model.safetensors", self.state_dict())
        sizes = asdict(self.config) | {"checkpoint_blocks": False}
        if self.config.encoder.pretrained:
            sizes["input_mean"], sizes["input_std"] = self.config.input_statistics()
        for part in ("encoder", "decoder"):
            sizes[part] |= {"pretrained": False, "weights": ""}  # they lie here: nothing is to be fetched
        write_json(
            folder / "config.json",
            {
                "format": FORMAT_VERSION,
                "sizes": sizes,
                "norm_eps": norm_eps(self),
                "about": self.about,
                "fingerprint": self.fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> Autoencoder:
        """Read an autoencoder that :meth:`save` wrote, in evaluation mode on the CPU.

        Raises:
            UserError: the folder is not an autoencoder, or is damaged.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json", "autoencoder")
        if config.get("format") != FORMAT_VERSION or not isinstance(config.get("about"), dict):
            raise UserError(f"{folder / 'config.json'} is not an autoencoder of format {FORMAT_VERSION}")
        sizes, about = build_config(AutoencoderConfig, config.get("sizes"), str(folder)), config["about"]
        tensors = read_tensors(folder / "model.safetensors", "autoencoder's weights")
        if "norm_eps" not in config:
            as_saved_before(sizes, tensors, folder)
        model = build_saved(lambda: cls(sizes, about), config["sizes"], tensors, f"the autoencoder in {folder}")
        if "norm_eps" in config:
            set_norm_eps(model, config["norm_eps"], str(folder / "config.json"))
        if model.fingerprint != config.get("fingerprint"):
            raise UserError(
                f"the weights in {folder / 'model.safetensors'} are not those that its config.json was written with: restore the folder"
            )
        return model.eval()

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **download_options: Any) -> Autoencoder:
        """Read an autoencoder from a folder, or from the Hugging Face hub by ``user/name``.

        ``download_options`` go to ``huggingface_hub.snapshot_download`` (``revision``, ``cache_dir``, ``token``, ...).
        """
        return cls.load(saved_folder(name_or_folder, "autoencoder", **download_options))

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the two files that :meth:`save` writes to the Hugging Face hub as ``user/name``; returns where they are.

        Raises:
            UserError: the hub cannot be reached, or refuses.
        """
        return push_folder(self.save, name, "autoencoder", private=private, token=token)
