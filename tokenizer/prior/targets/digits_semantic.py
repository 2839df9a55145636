"""The embedded semantic target: spatial features of a small classifier trained on the digits, in DINOv2's place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.data.digits import NUM_CLASSES, NUM_DIGITS, digit_images
from flowprior.data.images import to_model
from flowprior.progress import progress_bar
from flowprior.run.config import option
from flowprior.training.randomness import stream_seed
from tokenizer.prior.targets.base import TargetContext, TargetFeatures, computed_once


class DigitClassifier(nn.Module):
    """Three strided convolutions, then the class from the mean over positions.

    Args:
        width: channels of the spatial features.
        generator: draws the initial weights.
    """

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [nn.Conv2d(1, width // 2, 3, 2, 1), nn.Conv2d(width // 2, width, 3, 2, 1), nn.Conv2d(width, width, 3, 2, 1)]
        )
        self.classify = nn.Linear(width, NUM_CLASSES)
        for layer in [*self.convolutions, self.classify]:
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def features(self, images: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] to one vector per position, ``(B, (S / 8)^2, width)``, before the last non-linearity."""
        x = images[:, :1]
        for layer in self.convolutions[:-1]:
            x = F.gelu(layer(x))
        return self.convolutions[-1](x).flatten(2).transpose(1, 2)  # (B, positions, width)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(F.gelu(self.features(images)).mean(1))  # (B, 10)


@dataclass
class DigitsSemanticTarget:
    """source=digits_semantic: a small classifier is trained, and its spatial features are the target."""

    image_size: int = option(32, "pixels on a side")
    width: int = option(64, "channels of the features")
    steps: int = option(400, "steps of the classifier's training, 64 images each")

    def load(self, context: TargetContext) -> TargetFeatures:
        made = computed_once(context, self, lambda: self.train_classifier(context.seed))
        return made._replace(rows_per_sample=len(made.features) // NUM_DIGITS)

    def train_classifier(self, seed: int) -> TargetFeatures:
        """Train the classifier on all digits and take its features of them, ``(1797 * positions, width)``."""
        images, labels = digit_images(self.image_size)
        images = to_model(images)
        generator = torch.Generator().manual_seed(stream_seed(seed, "semantic target"))
        model = DigitClassifier(self.width, generator)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        for _ in progress_bar(range(self.steps), desc="target classifier", unit="step"):
            rows = torch.randint(len(images), (64,), generator=generator)
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            features = torch.cat([model.features(part) for part in images.split(256)])  # (N, positions, width)
        return TargetFeatures(features.flatten(0, 1), f"digits_semantic: {self.width} spatial features of a classifier")
