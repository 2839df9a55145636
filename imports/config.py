"""What a checkpoint does not say, and a person may."""

from __future__ import annotations

from dataclasses import dataclass

from flowprior.run.config import Section, option


@dataclass
class ImportConfig(Section):
    """Options of the import."""

    set: str = option(
        "", "key of the checkpoint's tensors; empty: model_ema, ema, model or state_dict, the first that is there"
    )
    encoder: str = option(
        "", "timm ViT of an autoencoder's encoder; empty: the DINOv2 or plain ViT of its width and depth"
    )
    decoder: str = option("", "timm ViT of its decoder, likewise")
    temperature: float = option(0.07, "of the soft assignment to SoftVQ's codebooks", above=0)
    autoencoder: str = option("", "folder of the imported autoencoder whose latents a MAR was trained on")
    scale: float = option(
        0.0,
        "1 / std that a MAR's latents, or a flow prior's raw features, were multiplied by; 0: the number of that name in the checkpoint",
        least=0,
    )
    features: int = option(
        0,
        "channels of a flow prior's raw features, which its random projection starts from; 0: they were projected before",
        least=0,
    )
    projection_seed: int = option(42, "seed of that projection", least=0, most=2**63 - 1)
