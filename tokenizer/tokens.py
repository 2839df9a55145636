"""Tokens through timm's vision transformers: patches with their positions, and further tokens behind them.

A ViT adds positions to the patches; an Eva (EVA-02, DINOv3, ...) turns queries and keys in every block as well (rotary positions,
arXiv 2104.09864 and 2303.11331). Further tokens have no place in the image: they are not turned."""

from __future__ import annotations

from typing import NamedTuple

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class PlacedTokens(NamedTuple):
    """A sequence as the first block takes it."""

    tokens: Tensor  # (B, n, W): class token and registers, patches, further tokens
    rotation: (
        Tensor | None
    )  # (..., n - prefix, 2 d): sines and cosines of every token but the prefix; ... is empty, or (depth, heads)

    def followed_by(self, more: Tensor) -> PlacedTokens:
        """With ``more (B, m, W)``, which no rotation touches, behind."""
        rotation = self.rotation
        if rotation is not None:
            still = rotation.new_zeros(*rotation.shape[:-2], more.shape[1], rotation.shape[-1])
            still[..., rotation.shape[-1] // 2 :] = 1  # sine 0, cosine 1
            rotation = torch.cat([rotation, still], dim=-2)
        return PlacedTokens(torch.cat([self.tokens, more], dim=1), rotation)


def placed(vit: VisionTransformer | Eva, patches: Tensor) -> PlacedTokens:
    """Embedded ``patches (B, N, W)`` with the ViT's positions, behind its class token and registers."""
    made = vit._pos_embed(patches)
    return PlacedTokens(*made) if isinstance(made, tuple) else PlacedTokens(made, None)


def before_blocks(vit: VisionTransformer | Eva, sequence: PlacedTokens) -> Tensor:
    """The tokens, ``(B, n, W)``, through the norm that some ViTs have in front of their blocks."""
    return vit.norm_pre(sequence.tokens) if hasattr(vit, "norm_pre") else sequence.tokens


def through_block(
    vit: VisionTransformer | Eva, number: int, x: Tensor, rotation: Tensor | None, recompute: bool = False
) -> Tensor:
    """Block ``number``, from 0, on tokens ``(B, n, W)``; ``recompute``: computed twice rather than kept."""
    places = () if rotation is None else (rotation[number] if rotation.dim() == 4 else rotation,)
    if recompute and torch.is_grad_enabled():
        return checkpoint(vit.blocks[number], x, *places, use_reentrant=False)
    return vit.blocks[number](x, *places)


def through_blocks(vit: VisionTransformer | Eva, sequence: PlacedTokens, recompute: bool = False) -> Tensor:
    """Blocks and norms over any sequence, ``(B, n, W)``; ``recompute``: see :func:`through_block`."""
    x = before_blocks(vit, sequence)
    for number in range(len(vit.blocks)):
        x = through_block(vit, number, x, sequence.rotation, recompute)
    return vit.norm(x)
