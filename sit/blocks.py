"""Transformer blocks whose shift, scale and gate come from a code of time and class, adaLN-Zero: DiT's plain one and LightningDiT's."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from timm.layers import Mlp, SwiGLU
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

Kind = Literal["plain", "lightning"]
EPS = 1e-6
MLP_RATIO = 4


class RMSNorm(nn.RMSNorm):
    """Root mean square norm, in float32 under autocast, which leaves this norm alone, weights and all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class Block(nn.Module):
    """Attention and MLP between modulations; the identity at initialisation.

    Args:
        width: W of the tokens.
        heads: of attention; W is a multiple of it.
        kind: ``plain`` is DiT's (arXiv 2212.09748): layer norm and GELU. ``lightning`` is LightningDiT's (arXiv 2501.01423): RMS norm, also of
            queries and keys, and SwiGLU, whose two thirds of the hidden width have the parameters of the plain MLP.
    """

    def __init__(self, width: int, heads: int, kind: Kind) -> None:
        super().__init__()
        lightning, hidden = kind == "lightning", MLP_RATIO * width
        rms_norm = partial(RMSNorm, eps=EPS)
        self.norm1, self.norm2 = norm(width, kind), norm(width, kind)
        self.attention = Attention(width, heads, qkv_bias=True, qk_norm=lightning, norm_layer=rms_norm)
        if lightning:
            self.mlp = SwiGLU(width, multiple_of_8(2 * hidden / 3))
        else:
            self.mlp = Mlp(width, hidden, act_layer=partial(nn.GELU, approximate="tanh"))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        """``x (B, T, W)`` under ``code (B, W)``."""
        first, second = self.modulation(code).unsqueeze(1).chunk(2, dim=-1)  # each (B, 1, 3 W)
        shift, scale, gate = first.chunk(3, dim=-1)  # each (B, 1, W)
        x = x + gate * self.attention(self.norm1(x) * (1 + scale) + shift)  # (B, T, W)
        shift, scale, gate = second.chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm2(x) * (1 + scale) + shift)  # (B, T, W)


class OutputLayer(nn.Module):
    """Modulated norm and a linear read-out that starts at zero."""

    def __init__(self, width: int, channels: int, kind: Kind) -> None:
        super().__init__()
        self.norm = norm(width, kind)
        self.linear = nn.Linear(width, channels)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        shift, scale = self.modulation(code).unsqueeze(1).chunk(2, dim=-1)  # each (B, 1, W)
        return self.linear(self.norm(x) * (1 + scale) + shift)  # (B, T, C)


def norm(width: int, kind: Kind) -> nn.Module:
    """Of the tokens in front of a modulation; DiT's has no weights of its own."""
    return RMSNorm(width, eps=EPS) if kind == "lightning" else nn.LayerNorm(width, EPS, elementwise_affine=False)


def multiple_of_8(width: float) -> int:
    """The next multiple of 8, which matrix units take at full speed."""
    return 8 * -(-int(width) // 8)


def sinusoids(tokens: int, width: int) -> Tensor:
    """Positions 0 ... T - 1 as sines and cosines at W / 2 frequencies, ``(T, W)``; DiT's, along one axis."""
    frequencies = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = torch.arange(tokens, dtype=torch.float64).outer(frequencies)  # (T, W / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
