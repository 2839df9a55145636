"""Maps of the latents that belong to the autoencoder, by name: saved with it, and applied whenever it encodes.

A regulariser that acts on mapped latents asks for its map (:meth:`~tokenizer.regularisers.base.Regulariser.adapt`). A new map is a file with a
config that has ``check(tokens, channels)`` and ``build(tokens, channels)``, and a line in ``LATENT_MAPS``; the module takes latents ``(B, T, C)`` and
returns them mapped, with what a regulariser may want to know of it by name.
"""

from __future__ import annotations

from flowprior.run.config import registry_section
from tokenizer.latent_maps.segment_codebooks import SegmentCodebooksConfig
from tokenizer.latent_maps.soft_codebook import SoftCodebookConfig

LATENT_MAPS = {"soft_codebook": SoftCodebookConfig, "segment_codebooks": SegmentCodebooksConfig}

LatentMapConfig = registry_section(
    "LatentMapConfig", "name", "none", LATENT_MAPS, "what the encoder's latents go through", several=True
)
