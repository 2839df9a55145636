"""Discriminators, by name. A new one is a file with a config that has ``build(image_size)``, and a line in ``DISCRIMINATORS``."""

from __future__ import annotations

from flowprior.run.config import registry_section
from tokenizer.losses.discriminators.base import Discriminator
from tokenizer.losses.discriminators.dino import DinoConfig
from tokenizer.losses.discriminators.patchgan import PatchGANConfig

DISCRIMINATORS = {"dino": DinoConfig, "patchgan": PatchGANConfig}

DiscriminatorConfig = registry_section(
    "DiscriminatorConfig", "name", "dino", DISCRIMINATORS, "who tells reconstructions from images"
)


def build_discriminator(config: DiscriminatorConfig, image_size: int) -> Discriminator:
    """The discriminator that ``config.name`` names."""
    [discriminator] = config.chosen
    return discriminator.build(image_size)
