"""The digits' stand-in for DINOv2: a small classifier, trained on embedded digits, whose spatial features take the patches' place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flowprior.run.config import Section, option
from flowprior.run.files import load_weights, read_tensors, write_tensors
from flowprior.training.randomness import stream_seed
from tokenizer.digit_classifier import DigitClassifier, trained_classifier
from tokenizer.features.base import FeatureContext, FeatureModel


@dataclass
class DigitsFeatures(Section):
    """source=digits: nothing to download."""

    of: Literal["digits", "mnist"] = option("digits", "embedded images that the classifier is trained on")
    width: int = option(64, "channels of the features", least=1)
    steps: int = option(400, "steps of the classifier's training, 64 images each", least=1)

    def build(self, image_size: int) -> ClassifierFeatures:
        return ClassifierFeatures(self, image_size)


class ClassifierFeatures(FeatureModel):
    """One vector per 8 x 8 pixels, and their mean behind the last non-linearity."""

    def __init__(self, config: DigitsFeatures, image_size: int) -> None:
        super().__init__()
        self.config, self.image_size = config, image_size
        self.width, self.patches = config.width, (-(-image_size // 8)) ** 2
        self.classifier = DigitClassifier(self.widths)
        self.freeze()

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.width,) * 3

    def prepare(self, context: FeatureContext) -> None:
        """Take the weights that lie in the stage's folder; the first process trains them on all images where there are none."""
        steps, seed = self.config.steps, context.seed
        of = self.config.of
        kind = "digit" if of == "digits" else of  # the name that files of earlier versions have
        file = context.folder / f"{kind}_features_{self.width}_{steps}_{seed}.safetensors"
        if context.world.is_main and not file.is_file():
            seed = stream_seed(seed, "digit features")
            trained = trained_classifier(of, self.widths, self.image_size, steps, seed, "feature classifier")
            write_tensors(file, trained.state_dict())
        context.world.barrier()
        load_weights(self.classifier, read_tensors(file, "digit features"), f"the classifier in {file}")

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.classifier.spatial(images).float()  # (B, N, D)
        return patches, F.gelu(patches).mean(1)
