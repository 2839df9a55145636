"""Frozen image features that regularisers align latents with, by name.

A new source is a file with a config that has ``build(image_size)``, and a line in ``FEATURES``.
"""

from __future__ import annotations

from flowprior.run.config import registry_section
from tokenizer.features.base import FeatureModel
from tokenizer.features.digits import DigitsFeatures
from tokenizer.features.timm import TimmFeatures

FEATURES = {"timm": TimmFeatures, "digits": DigitsFeatures}

FeatureConfig = registry_section(
    "FeatureConfig",
    "source",
    "timm",
    FEATURES,
    "frozen image features that softvq, soft_pq, reals and vavae align latents with",
)


def build_features(config: FeatureConfig, image_size: int) -> FeatureModel:
    """The frozen model that ``config.source`` names; its ``prepare`` gives it weights of the stage's own."""
    [source] = config.chosen
    return source.build(image_size)
