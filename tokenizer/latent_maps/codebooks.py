"""What maps that assign latents softly to codebooks have in common."""

from __future__ import annotations

from dataclasses import dataclass

from flowprior.run.config import Section, option


@dataclass
class CodebooksConfig(Section):
    """Sizes of the codebooks, and how soft the assignment is."""

    codebooks: int = option(4, "number of codebooks", least=1)
    size: int = option(8192, "codewords in a codebook", least=1)
    temperature: float = option(
        0.07, "temperature of the softmax over cosine similarities that mixes the codewords", above=0
    )
