"""The embedded semantic target: spatial features of a small classifier trained on embedded digits, in DINOv2's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowprior.data.embedded import EMBEDDED
from flowprior.data.images import to_model
from flowprior.run.config import option
from flowprior.training.randomness import stream_seed
from tokenizer.digit_classifier import trained_classifier
from tokenizer.prior.targets.base import TargetContext, TargetFeatures, computed_once


@dataclass
class DigitsSemanticTarget:
    """source=digits_semantic: a small classifier is trained, and its spatial features are the target."""

    of: Literal["digits", "mnist"] = option("digits", "embedded images that it is trained on and takes features of")
    image_size: int = option(32, "pixels on a side")
    width: int = option(64, "channels of the features")
    steps: int = option(400, "steps of the classifier's training, 64 images each")

    def load(self, context: TargetContext) -> TargetFeatures:
        made = computed_once(context, self, lambda: self.features_of_digits(context.seed))
        return made._replace(rows_per_sample=(-(-self.image_size // 8)) ** 2)

    def features_of_digits(self, seed: int) -> TargetFeatures:
        """Train the classifier on all images and take its features of them, ``(images * positions, width)``."""
        widths = self.width // 2, self.width, self.width
        seed = stream_seed(seed, "semantic target")
        model = trained_classifier(self.of, widths, self.image_size, self.steps, seed, "target classifier")
        images = to_model(EMBEDDED[self.of].images(self.image_size)[0])
        with torch.no_grad():
            features = torch.cat([model.spatial(part) for part in images.split(256)])  # (N, positions, width)
        return TargetFeatures(features.flatten(0, 1), f"digits_semantic: {self.width} spatial features of a classifier")
