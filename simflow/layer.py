"""A transformer layer in which a token sees itself and those before it: all tokens at once, or one after the other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn


class KeyValueCache:
    """Keys and values of the tokens that one layer has seen.

    Args:
        tokens: how many will come.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens, self.seen = tokens, 0
        self.kept = torch.empty(0)

    def extended(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``(B, heads, seen, D)`` of all tokens so far, with these ``(B, heads, 1, D)`` of the next."""
        if not self.seen:
            batch, heads, _, size = keys.shape
            self.kept = keys.new_empty(2, batch, heads, self.tokens, size)
        self.kept[0, :, :, self.seen] = keys.squeeze(2)
        self.kept[1, :, :, self.seen] = values.squeeze(2)
        self.seen += 1
        return self.kept[0, :, :, : self.seen], self.kept[1, :, :, : self.seen]


class CausalLayer(nn.Module):
    """Attention and an MLP of four times the width, each behind a norm and beside a residual connection.

    Args:
        width: of a token; it divides into the heads.
        heads: of attention.
        dropout: of attention, its projection and the MLP.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, 4 * width, drop=dropout)

    def forward(self, x: Tensor) -> Tensor:
        """All tokens ``(B, T, W)`` at once."""
        queries, keys, values = self._heads(x)
        drop = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, keys, values, dropout_p=drop, is_causal=True)
        return self._finish(x, attended)  # (B, T, W)

    def step(self, x: Tensor, cache: KeyValueCache) -> Tensor:
        """The next token ``(B, 1, W)`` alone, given what ``cache`` holds of those before it; it is added to the cache."""
        queries, keys, values = self._heads(x)
        keys, values = cache.extended(keys, values)
        return self._finish(x, F.scaled_dot_product_attention(queries, keys, values))  # (B, 1, W)

    def _heads(self, x: Tensor) -> Tensor:
        """Queries, keys and values, ``(3, B, heads, T, W / heads)``."""
        return self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        attended = self.project(attended.transpose(1, 2).flatten(2))  # (B, T, W)
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + self.mlp(self.norm2(x))
