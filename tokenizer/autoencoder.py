"""A ViT autoencoder whose latent is a short sequence of tokens: (tokens, channels) instead of a feature map."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from flowprior.errors import UserError
from flowprior.training.config import build_config, option
from flowprior.training.files import (
    load_weights,
    read_json,
    read_tensors,
    tensors_fingerprint,
    write_json,
    write_tensors,
)

FORMAT_VERSION = 1


@dataclass
class ViTConfig:
    """A transformer: any timm ViT by name, or a plain one by its sizes."""

    name: str = option("", "a timm ViT, e.g. vit_large_patch14_dinov2.lvd142m; empty: a plain one of the sizes below")
    pretrained: bool = option(False, "start from the weights that timm knows for this name")
    width: int = option(96, "of a plain ViT")
    depth: int = option(3, "of a plain ViT")
    heads: int = option(3, "of a plain ViT")

    def __post_init__(self) -> None:
        if self.pretrained and not self.name:
            raise ValueError("pretrained weights need the name of a timm model")
        if min(self.width, self.depth, self.heads) < 1:
            raise ValueError("width, depth and heads are at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")


@dataclass
class AutoencoderConfig:
    """Sizes of the autoencoder."""

    image_size: int = option(32, "pixels on a side")
    patch_size: int = option(8, "pixels on a side")
    tokens: int = option(8, "latent tokens per image")
    channels: int = option(8, "channels of a latent token")
    gaussian: bool = option(False, "encode to a mean and a log-variance (the kl regulariser asks for it by itself)")
    encoder: ViTConfig = option(ViTConfig, "")
    decoder: ViTConfig = option(ViTConfig, "")
    token_std: float = option(
        0.02, "of tokens and positions at initialisation; a larger one shortens a small model's plateau at the start"
    )

    def __post_init__(self) -> None:
        if min(self.image_size, self.patch_size, self.tokens, self.channels) < 1:
            raise ValueError("image_size, patch_size, tokens and channels are at least 1")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} does not divide into patches of {self.patch_size} pixels")


class Encoded(NamedTuple):
    """What the encoder makes of images."""

    latents: Tensor  # (B, T, C): what the decoder sees; drawn from the posterior in training when there is one
    mean: Tensor  # (B, T, C): what is cached
    logvar: Tensor | None  # (B, T, C), of a gaussian autoencoder


def build_vit(config: ViTConfig, image_size: int, patch_size: int, position_std: float = 0.02) -> VisionTransformer:
    """A timm vision transformer without a head, its positions (and pretrained patches) resampled to these sizes.

    Raises:
        UserError: timm knows no such model, it is not a ViT, or its weights cannot be had.
    """
    if not config.name:
        vit = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            global_pool="",
            class_token=False,
        )
        nn.init.normal_(vit.pos_embed, std=position_std)
        return vit
    try:
        vit = timm.create_model(
            config.name, pretrained=config.pretrained, img_size=image_size, patch_size=patch_size, num_classes=0
        )
    except (RuntimeError, TypeError, AssertionError) as error:
        raise UserError(
            f"timm cannot build the ViT '{config.name}' at {image_size} px ({' '.join(str(error).split())[:160]})"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"the weights of '{config.name}' are not on this machine and cannot be fetched: put the hub's timm/{config.name} "
            f"into HF_HOME, or write pretrained=false"
        ) from error
    if isinstance(vit, VisionTransformer) and not config.pretrained and vit.pos_embed is not None:
        nn.init.normal_(vit.pos_embed, std=position_std)
    if not isinstance(vit, VisionTransformer):
        raise UserError(
            f"'{config.name}' is not one of timm's vision transformers: choose a name that starts with vit_"
        )
    return vit


def through_blocks(vit: VisionTransformer, x: Tensor) -> Tensor:
    """Blocks and norms of a timm ViT over any sequence, ``(B, n, W) -> (B, n, W)``."""
    return vit.norm(vit.blocks(vit.norm_pre(x)))


class Encoder(nn.Module):
    """Patches and learnable latent tokens through a ViT; the latent tokens' outputs, through one linear layer, are the latent."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.vit = build_vit(config.encoder, config.image_size, config.patch_size, config.token_std)
        width = self.vit.embed_dim
        self.latent_tokens = nn.Parameter(torch.randn(1, config.tokens, width) * config.token_std)
        self.to_latent = nn.Linear(width, config.channels * (2 if config.gaussian else 1))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.vit._pos_embed(self.vit.patch_embed(images))  # (B, prefix + patches, W)
        tokens = self.latent_tokens.expand(len(images), -1, -1)  # (B, T, W)
        x = through_blocks(self.vit, torch.cat([patches, tokens], dim=1))  # (B, prefix + patches + T, W)
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

    def forward(self, latents: Tensor) -> Tensor:
        patches = self.vit._pos_embed(
            self.mask_token.expand(len(latents), self.side**2, -1)
        )  # (B, prefix + patches, W)
        x = torch.cat([patches, self.from_latent(latents) + self.latent_positions], dim=1)
        x = through_blocks(self.vit, x)[:, self.vit.num_prefix_tokens :][:, : self.side**2]  # (B, patches, W)
        pixels = self.to_pixels(x).view(-1, self.side, self.side, self.patch, self.patch, 3)
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(
            -1, 3, self.side * self.patch, self.side * self.patch
        )  # (B, 3, H, H)


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

    @property
    def fingerprint(self) -> str:
        """16 hex digits of every weight."""
        return tensors_fingerprint(self.state_dict())

    def posterior(self, images: Tensor, noise: Tensor | None = None) -> Encoded:
        """Encode; with ``noise (B, T, C)`` a gaussian autoencoder draws its latents, without it they are the mean."""
        code = self.encoder(images)
        if not self.config.gaussian:
            return Encoded(code, code, None)
        mean, logvar = code.chunk(2, dim=-1)
        logvar = logvar.clamp(-30, 20)
        latents = mean if noise is None else mean + (0.5 * logvar).exp() * noise
        return Encoded(latents, mean, logvar)

    def encode(self, images: Tensor) -> Tensor:
        """``(B, 3, H, H)`` in [-1, 1] to latents ``(B, T, C)``."""
        return self.posterior(images).mean

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(B, T, C)`` to images ``(B, 3, H, H)``, in [-1, 1] but for overshoot."""
        return self.decoder(latents)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Encoded]:
        encoded = self.posterior(images, noise)
        return self.decoder(encoded.latents), encoded

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``."""
        folder = Path(folder)
        write_tensors(folder / "model.safetensors", self.state_dict())
        sizes = asdict(self.config)
        for part in ("encoder", "decoder"):
            sizes[part]["pretrained"] = False  # the weights lie here: nothing is to be fetched to load them
        write_json(
            folder / "config.json",
            {"format": FORMAT_VERSION, "sizes": sizes, "about": self.about, "fingerprint": self.fingerprint},
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
        model = cls(build_config(AutoencoderConfig, config.get("sizes"), str(folder)), config.get("about"))
        load_weights(
            model, read_tensors(folder / "model.safetensors", "autoencoder's weights"), f"the autoencoder in {folder}"
        )
        return model.eval()
