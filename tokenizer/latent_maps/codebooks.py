"""What maps that assign latents softly to codebooks have in common."""

from __future__ import annotations

from dataclasses import dataclass

from flowprior.run.config import option


@dataclass
class CodebooksConfig:
    """Sizes of the codebooks, and how soft the assignment is."""

    codebooks: int = option(4, "number of codebooks")
    size: int = option(8192, "codewords in a codebook")
    temperature: float = option(0.07, "temperature of the softmax over cosine similarities that mixes the codewords")

    def __post_init__(self) -> None:
        if min(self.codebooks, self.size) < 1 or not self.temperature > 0:
            raise ValueError("codebooks and size are at least 1, and temperature is above 0")
