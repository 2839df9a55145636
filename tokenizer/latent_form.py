"""What stages ask of an autoencoder that is not of this project's making, and how its maps become tokens."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Sizes(NamedTuple):
    """Its config in short; image_size and tokens are 0 where it takes any."""

    image_size: int
    tokens: int
    channels: int
    gaussian: bool = False


def as_tokens(latents: Tensor) -> Tensor:
    """A map ``(B, C, h, w)`` as tokens ``(B, h w, C)``, row by row; tokens stay as they are."""
    return latents.flatten(2).transpose(1, 2) if latents.dim() == 4 else latents


def as_map(tokens: Tensor, places: tuple[int, ...]) -> Tensor:
    """Tokens ``(B, T, C)`` as a map ``(B, C, h, w)`` of ``places`` (h, w), contiguous; where ``places`` are (T,) they stay as they are."""
    return tokens.transpose(1, 2).unflatten(2, places).contiguous() if len(places) == 2 else tokens
