"""Features of a frozen timm ViT: DINOv2 for the published aligners, DINO for the discriminator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.notes import note
from flowprior.pretrained.timm_encoder import whole_patches
from flowprior.run.config import Section, option
from tokenizer.features.base import FeatureModel
from tokenizer.tokens import PlacedTokens, before_blocks, placed, through_block, through_blocks
from tokenizer.vit import ViTConfig, build_vit, patch_pixels, pixel_statistics


@dataclass
class TimmFeatures(Section):
    """source=timm: patch and global features of a timm ViT."""

    name: str = option("vit_base_patch14_dinov2.lvd142m", "a timm ViT")
    pretrained: bool = option(
        True, "take the weights that timm knows for this name; false: random ones, to try things out"
    )
    weights: str = option("", "file with the weights, where they are not to come from the hub", changes_result=False)
    size: int = option(
        224,
        "pixels on a side that images are resized to for it; the nearest multiple of its patches' is taken",
        least=1,
    )

    def build(self, image_size: int) -> ViTFeatures:
        return ViTFeatures(FrozenViT(ViTConfig(self.name, self.pretrained, weights=self.weights), self.size))


class FrozenViT(nn.Module):
    """A timm ViT that takes images in [-1, 1] of any size and gives its tokens after chosen blocks.

    Args:
        config: which.
        size: pixels on a side that images are resized to; the nearest multiple of the ViT's patch size is taken, and said.
    """

    def __init__(self, config: ViTConfig, size: int) -> None:
        super().__init__()
        patch, asked = patch_pixels(config.name), size
        size = whole_patches(asked, patch)
        if size != asked:
            note(f"images are resized to {size} px for '{config.name}', not {asked}: its patches have {patch} px")
        self.vit = build_vit(config, size, None)
        self.size, self.width, self.patches = size, self.vit.embed_dim, self.vit.patch_embed.num_patches
        self.side = self.vit.patch_embed.grid_size[0]
        mean, std = pixel_statistics(config.name)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenViT:
        return super().train(False)

    def embed(self, images: Tensor) -> PlacedTokens:
        """Images ``(B, 3, H, H)`` in [-1, 1] as prefix and patches with positions, ``(B, prefix + N, D)``."""
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bicubic", antialias=True)  # (B, 3, S, S)
        x = ((images + 1) / 2 - self.mean) / self.std
        return placed(self.vit, self.vit.patch_embed(x))

    def after_blocks(self, images: Tensor, blocks: tuple[int, ...]) -> list[Tensor]:
        """Patch tokens ``(B, N, D)`` after each of ``blocks``, counted from 1, ascending."""
        sequence, kept = self.embed(images), []
        x = before_blocks(self.vit, sequence)
        for number in range(max(blocks)):
            x = through_block(self.vit, number, x, sequence.rotation)
            if number + 1 in blocks:
                kept.append(x[:, self.vit.num_prefix_tokens :])
        return kept

    def forward(self, images: Tensor) -> Tensor:
        """All tokens after the last norm, ``(B, prefix + N, D)``."""
        return through_blocks(self.vit, self.embed(images))


class ViTFeatures(FeatureModel):
    """Patch tokens, and the class token or, without one, the patches' mean."""

    def __init__(self, vit: FrozenViT) -> None:
        super().__init__()
        self.frozen, self.patches, self.width = vit, vit.patches, vit.width
        self.freeze()

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens, vit = self.frozen(images).float(), self.frozen.vit
        patches = tokens[:, vit.num_prefix_tokens :]  # (B, N, D)
        return patches, tokens[:, 0] if vit.cls_token is not None else patches.mean(1)
