"""Some of the images of a source, as a source."""

from __future__ import annotations

from torch import Tensor

from flowprior.data.images import ImageSource
from flowprior.data.order import SampleKey


class ChosenImages:
    """Some of the images of a source, in an order of one's own.

    Args:
        source: of all images.
        chosen: indices of some.

    Attributes:
        labels: of the batches that were read, ``(B,)`` each.
    """

    def __init__(self, source: ImageSource, chosen: list[int]) -> None:
        self.source, self.chosen, self.labels = source, chosen, list[Tensor]()

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        """As the source's, of the chosen images at the keys' indices."""
        batch = self.source.batch([SampleKey(self.chosen[key.index], key.epoch) for key in keys])
        self.labels.append(batch["label"])
        return batch
