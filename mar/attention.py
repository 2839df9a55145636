"""Parts of a transformer block: outputs of some positions only, and of some tokens beside kept keys and values of the others."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor


class KeysValues(NamedTuple):
    """What tokens offer to attention in one block, both ``(B, heads, tokens, width / heads)``."""

    keys: Tensor
    values: Tensor

    def joined(self, other: KeysValues) -> KeysValues:
        """These tokens and ``other``, in this order."""
        return KeysValues(torch.cat([self.keys, other.keys], 2), torch.cat([self.values, other.values], 2))

    def replaced(self, positions: Tensor, own: KeysValues) -> KeysValues:
        """These tokens with ``own`` in place of those at ``positions (B, n)``."""
        index = positions[:, None, :, None].expand_as(own.keys)  # (B, heads, n, width / heads)
        return KeysValues(self.keys.scatter(2, index, own.keys), self.values.scatter(2, index, own.values))


def gather_tokens(x: Tensor, positions: Tensor) -> Tensor:
    """``x (B, T, W)`` at ``positions (B, n)``: ``(B, n, W)``."""
    return x.gather(1, positions.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def block_at(block: Block, x: Tensor, positions: Tensor) -> Tensor:
    """``block(x)`` at ``positions (B, n)`` alone, ``(B, n, W)``: only these attend, to all tokens of ``x (B, N, W)``."""
    normed = block.norm1(x)  # (B, N, W)
    queries = _queries(block, gather_tokens(normed, positions))
    return _finish(block, gather_tokens(x, positions), queries, _keys_values(block, normed))  # (B, n, W)


def block_with_past(block: Block, x: Tensor, past: KeysValues | None) -> tuple[Tensor, KeysValues]:
    """``block`` on the tokens ``x (B, n, W)``, which see one another and ``past``, but which the past does not see.

    Returns:
        Their outputs ``(B, n, W)``, and keys and values of the past with theirs.
    """
    normed = block.norm1(x)  # (B, n, W)
    own = _keys_values(block, normed)
    context = own if past is None else past.joined(own)
    return _finish(block, x, _queries(block, normed), context), context  # (B, n, W)


def keys_values(block: Block, x: Tensor) -> KeysValues:
    """What the tokens ``x (B, n, W)`` offer to attention in ``block``."""
    return _keys_values(block, block.norm1(x))


def block_among(block: Block, x: Tensor, positions: Tensor, kept: KeysValues) -> tuple[Tensor, KeysValues]:
    """``block`` on the tokens ``x (B, n, W)`` at ``positions (B, n)`` of a sequence, of whose tokens keys and values are ``kept``.

    Returns:
        Their outputs ``(B, n, W)``, and the kept keys and values with theirs in place.
    """
    normed = block.norm1(x)  # (B, n, W)
    context = kept.replaced(positions, _keys_values(block, normed))
    return _finish(block, x, _queries(block, normed), context), context  # (B, n, W)


def _heads(block: Block, x: Tensor) -> Tensor:
    return x.unflatten(-1, (block.attn.num_heads, -1)).transpose(1, 2)  # (B, heads, n, W / heads)


def _queries(block: Block, normed: Tensor) -> Tensor:
    attention, width = block.attn, normed.shape[-1]
    q = F.linear(normed, attention.qkv.weight[:width], attention.qkv.bias[:width])
    return attention.q_norm(_heads(block, q))  # (B, heads, n, W / heads)


def _keys_values(block: Block, normed: Tensor) -> KeysValues:
    attention, width = block.attn, normed.shape[-1]
    k, v = F.linear(normed, attention.qkv.weight[width:], attention.qkv.bias[width:]).chunk(2, dim=-1)
    return KeysValues(attention.k_norm(_heads(block, k)), _heads(block, v))


def _finish(block: Block, x: Tensor, queries: Tensor, context: KeysValues) -> Tensor:
    """Attention of ``queries`` to ``context``, and the rest of the block, for the tokens ``x (B, n, W)``."""
    attention = block.attn
    dropout = attention.attn_drop.p if block.training else 0.0
    attended = F.scaled_dot_product_attention(queries, context.keys, context.values, dropout_p=dropout)
    x = x + attention.proj_drop(attention.proj(attended.transpose(1, 2).flatten(2)))  # (B, n, W)
    return x + block.mlp(block.norm2(x))  # (B, n, W)
