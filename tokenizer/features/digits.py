"""The digits' stand-in for DINOv2: a small classifier, trained on the digits, whose spatial features take the patches' place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.data.digits import NUM_CLASSES, digit_images
from flowprior.data.images import to_model
from flowprior.progress import progress_bar
from flowprior.run.config import option
from flowprior.run.files import load_weights, read_tensors, write_tensors
from flowprior.training.randomness import stream_seed
from tokenizer.features.base import FeatureContext, FeatureModel


@dataclass
class DigitsFeatures:
    """source=digits: nothing to download."""

    width: int = option(64, "channels of the features")
    steps: int = option(400, "steps of the classifier's training, 64 images each")

    def __post_init__(self) -> None:
        if min(self.width, self.steps) < 1:
            raise ValueError("width and steps are at least 1")

    def load(self, context: FeatureContext) -> ClassifierFeatures:
        """The classifier that lies in the stage's folder; the first process trains it where there is none."""
        file = context.folder / f"digit_features_{self.width}_{self.steps}_{context.seed}.safetensors"
        with torch.random.fork_rng(
            devices=[]
        ):  # layers draw weights from the global generator before they are given others
            if context.world.is_main and not file.is_file():
                write_tensors(file, self.trained(context.image_size, context.seed).state_dict())
            context.world.barrier()
            model = self.untrained(context.image_size)
        load_weights(model, read_tensors(file, "digit features"), f"the classifier in {file}")
        return model

    def untrained(self, image_size: int) -> ClassifierFeatures:
        """The same model with random weights, to be counted."""
        return ClassifierFeatures(self.width, image_size, None).freeze()

    def trained(self, image_size: int, seed: int) -> ClassifierFeatures:
        """A classifier trained on all digits: a function of the arguments."""
        images, labels = digit_images(image_size)
        images = to_model(images)
        generator = torch.Generator().manual_seed(stream_seed(seed, "digit features"))
        model = ClassifierFeatures(self.width, image_size, generator)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
        for _ in progress_bar(range(self.steps), desc="feature classifier", unit="step"):
            rows = torch.randint(len(images), (64,), generator=generator)
            loss = F.cross_entropy(model.logits(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model


class ClassifierFeatures(FeatureModel):
    """Three strided convolutions, then the class from the mean over positions.

    Args:
        width: channels D of the spatial features.
        image_size: pixels on a side.
        generator: draws the initial weights; None: the global one.
    """

    def __init__(self, width: int, image_size: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.width, self.patches = width, (-(-image_size // 8)) ** 2
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((1, width), (width, width), (width, width)))
        self.classify = nn.Linear(width, NUM_CLASSES)
        for layer in [*self.stages, self.classify]:
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def spatial(self, images: Tensor) -> Tensor:
        x = images[:, :1]
        for layer in self.stages[:-1]:
            x = F.gelu(layer(x))
        return self.stages[-1](x).flatten(2).transpose(1, 2)  # (B, N, D), before the last non-linearity

    def logits(self, images: Tensor) -> Tensor:
        return self.classify(F.gelu(self.spatial(images)).mean(1))  # (B, 10)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.spatial(images).float()  # (B, N, D)
        return patches, F.gelu(patches).mean(1)
