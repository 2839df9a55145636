"""Frozen image features that regularisers align latents with, by name.

A new source is a file with a config that has ``load``
and ``untrained``, and a line in ``FEATURES``."""

from __future__ import annotations

from flowprior.run.config import registry_section
from tokenizer.features.base import FeatureContext, FeatureModel
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


def load_features(config: FeatureConfig, context: FeatureContext) -> FeatureModel:
    """The frozen model that ``config.source`` names."""
    return getattr(config, config.source).load(context)


def untrained_features(config: FeatureConfig, image_size: int) -> FeatureModel:
    """The same model with random weights, to be counted."""
    return getattr(config, config.source).untrained(image_size)
