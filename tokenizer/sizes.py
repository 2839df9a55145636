"""What stages ask of an autoencoder that is not of this project's making."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """Its config in short; image_size and tokens are 0 where it takes any."""

    image_size: int
    tokens: int
    channels: int
    gaussian: bool = False
