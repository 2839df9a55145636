"""A small classifier of embedded digits, whose spatial features stand in for those of a large network: as a target, or to align with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flowprior.data.embedded import EMBEDDED, NUM_CLASSES
from flowprior.data.images import to_model
from flowprior.progress import progress_bar

BATCH = 64


class DigitClassifier(nn.Module):
    """Strided convolutions, then the class from the mean over positions.

    Args:
        widths: channels after each convolution, which halves the side; the last are the features'.
        generator: draws the initial weights; None: the global one.
    """

    def __init__(self, widths: Sequence[int], generator: torch.Generator | None = None) -> None:
        super().__init__()
        with torch.random.fork_rng(
            devices=[]
        ):  # layers draw weights from the global generator before they are given others
            self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip((1, *widths), widths))
            self.classify = nn.Linear(widths[-1], NUM_CLASSES)
            for layer in [*self.stages, self.classify]:
                nn.init.kaiming_normal_(layer.weight, generator=generator)
                nn.init.zeros_(layer.bias)

    def spatial(self, images: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] to one vector per position, ``(B, P, D)``, before the last non-linearity."""
        x = images[:, :1]
        for layer in self.stages[:-1]:
            x = F.gelu(layer(x))
        return rearrange(self.stages[-1](x), "b d h w -> b (h w) d")

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, S, S)`` in [-1, 1] to logits ``(B, 10)``."""
        return self.classify(F.gelu(self.spatial(images)).mean(1))


def trained_classifier(
    data: str, widths: Sequence[int], image_size: int, steps: int, seed: int, shown: str
) -> DigitClassifier:
    """A classifier trained on all images of an embedded data set in batches of 64: a function of the arguments.

    Args:
        data: of :data:`~flowprior.data.embedded.EMBEDDED`.
        widths: see the class.
        image_size: pixels on a side.
        steps: of AdamW.
        seed: of the initial weights and the batches.
        shown: before the progress bar.
    """
    images, labels = EMBEDDED[data].images(image_size)
    images = to_model(images)
    generator = torch.Generator().manual_seed(seed)
    model = DigitClassifier(widths, generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in progress_bar(range(steps), desc=shown, unit="step"):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model
