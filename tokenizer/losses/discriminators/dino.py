"""A frozen DINO transformer with trained heads on several depths, the projected discriminator of StyleGAN-T (arXiv 2301.09515)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from flowprior.errors import UserError
from flowprior.run.config import option
from tokenizer.features.timm import FrozenViT
from tokenizer.losses.discriminators.base import Discriminator
from tokenizer.vit import ViTConfig


@dataclass
class DinoConfig:
    """Heads on a frozen timm ViT."""

    name: str = option("vit_small_patch16_224.dino", "the frozen network: a timm ViT")
    pretrained: bool = option(
        True, "take the weights that timm knows for this name; false: random ones, to try things out"
    )
    weights: str = option("", "file with the weights, where they are not to come from the hub", changes_result=False)
    size: int = option(
        224, "pixels on a side that images are resized to for it; the nearest multiple of its patches' is taken"
    )
    blocks: tuple[int, ...] = option((3, 6, 9, 12), "blocks, counted from 1, whose output has a head of its own")

    def build(self, image_size: int) -> DinoDiscriminator:
        return DinoDiscriminator(self)


FORMER_NAMES = {"enter": "embed", "look_around": "residual", "decide": "classify"}


def _present_names(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Checkpoints of earlier versions hold a head's layers under other names."""
    for name in [name for name in state if name.startswith(prefix)]:
        layer, dot, rest = name.removeprefix(prefix).partition(".")
        if layer in FORMER_NAMES:
            state[f"{prefix}{FORMER_NAMES[layer]}{dot}{rest}"] = state.pop(name)


class Head(nn.Module):
    """One logit per patch from a frozen layer's tokens; every convolution has spectral norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = spectral_norm(nn.Conv2d(width, width, 1))
        self.residual = spectral_norm(nn.Conv2d(width, width, 3, padding=1))
        # The hinge loss does not feel a constant in all logits: its gradient is rounding noise, which Adam would make steps of.
        self.classify = spectral_norm(nn.Conv2d(width, 1, 1, bias=False))
        self.register_load_state_dict_pre_hook(_present_names)

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        x = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-5)  # layers differ in scale
        x = rearrange(x, "b (h w) d -> b d h w", h=side)
        x = F.leaky_relu(self.embed(x), 0.2)
        x = x + F.leaky_relu(self.residual(x), 0.2)
        return self.classify(x).flatten(1)  # (B, N)


class DinoDiscriminator(Discriminator):
    """Logits of all heads, one per patch and depth.

    Raises:
        UserError: the ViT cannot be had, has fewer blocks than are asked for, or these do not ascend from 1 on.
    """

    def __init__(self, config: DinoConfig) -> None:
        super().__init__()
        if not config.blocks or min(config.blocks) < 1 or list(config.blocks) != sorted(set(config.blocks)):
            raise UserError("the discriminator's blocks are numbers from 1 on, ascending, such as [3, 6, 9, 12]")
        self.frozen = FrozenViT(ViTConfig(config.name, config.pretrained, weights=config.weights), config.size)
        self.blocks, depth = tuple(config.blocks), len(self.frozen.vit.blocks)
        if max(self.blocks) > depth:
            raise UserError(f"the discriminator's '{config.name}' has {depth} blocks: choose blocks up to {depth}")
        self.heads = nn.ModuleList(Head(self.frozen.width) for _ in self.blocks)

    @property
    def trained(self) -> nn.Module:
        return self.heads

    def forward(self, images: Tensor) -> Tensor:
        layers = self.frozen.after_blocks(images, self.blocks)
        return torch.cat([head(tokens, self.frozen.side) for head, tokens in zip(self.heads, layers)], dim=1)  # (B, n)
