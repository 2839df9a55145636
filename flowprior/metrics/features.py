"""What an extractor saw in a set of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowprior.errors import UserError
from flowprior.metrics.statistics import Statistics, StreamingMoments

CHUNK = 4096


@dataclass(frozen=True)
class Features:
    """What an extractor saw in a set of images; where two layers are one, they are one tensor.

    Attributes:
        fid: float32 ``(N, d)``, for FID.
        logits: float32 ``(N, c)``, for the inception score.
        prc: float32 ``(N, p)``, for precision and recall.
        extractor: the extractor's name, as :func:`~flowprior.metrics.registry.check_extractor` takes it.
    """

    fid: Tensor
    logits: Tensor
    prc: Tensor
    extractor: str

    def __post_init__(self) -> None:
        layers = (self.fid, self.logits, self.prc)
        if any(layer.ndim != 2 or len(layer) != len(self.fid) for layer in layers):
            raise ValueError(
                f"expected layers (N, d) with one row per image, got {', '.join(str(tuple(layer.shape)) for layer in layers)}"
            )

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.fid)

    def subset(self, indices: Tensor) -> Features:
        """The features of some of the images, by index ``(M,)``."""
        return self._each(lambda layer: layer[indices])

    def cpu(self) -> Features:
        """The same on the CPU."""
        return self._each(Tensor.cpu)

    def statistics(self) -> Statistics:
        """Moments of the FID layer, in float64."""
        if self.count < 2:
            raise UserError(f"FID needs at least 2 images, got {self.count}: fewer have no covariance")
        moments = StreamingMoments()
        for part in self.fid.split(CHUNK):
            moments.update(part)
        return moments.statistics(self.extractor)

    @classmethod
    def concatenate(cls, parts: list[Features]) -> Features:
        """The features of several batches by one extractor, in their order."""
        fid = torch.cat([part.fid for part in parts])
        shared = all(part.prc is part.fid for part in parts)
        prc = fid if shared else torch.cat([part.prc for part in parts])
        return cls(fid, torch.cat([part.logits for part in parts]), prc, parts[0].extractor)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Features:
        fid = change(self.fid)
        return Features(fid, change(self.logits), fid if self.prc is self.fid else change(self.prc), self.extractor)
