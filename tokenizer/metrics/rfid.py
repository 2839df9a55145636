"""Fréchet distance between the features of images and of their reconstructions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowprior import metrics
from flowprior.errors import UserError
from flowprior.precision import full_precision
from flowprior.run.files import file_sha256
from tokenizer.metrics.base import Meter, MeterContext


class RFIDMeter(Meter):
    """``rfid``; NaN of fewer than two images.

    The reference is the originals of the same pass, or moments of as many images of the same crop in a file.

    Raises:
        UserError: the extractor's weights cannot be had, or the reference is of another extractor, count or crop.
    """

    def __init__(self, context: MeterContext) -> None:
        super().__init__(context)
        if not context.extractor:
            raise UserError("rFID needs a feature extractor: write evaluate.extractor=inception")
        self.extractor = metrics.Extractor(
            context.extractor, device=context.device, weights_path=context.extractor_weights or None
        )
        _ = self.extractor.module  # now rather than after the first batch
        self.reference = read_reference(context, self.extractor) if context.reference else None
        self.real, self.decoded = metrics.StreamingMoments(), metrics.StreamingMoments()

    @torch.no_grad()
    def update(self, original: Tensor, reconstructed: Tensor) -> None:
        if original.shape != reconstructed.shape:
            raise ValueError(
                f"expected pairs of one size, got {tuple(original.shape)} and {tuple(reconstructed.shape)}"
            )
        with full_precision(self.context.device):
            if self.reference is None:
                self.real.update(self.extractor(original).fid)
            self.decoded.update(self.extractor(reconstructed).fid)

    def compute(self) -> dict[str, float]:
        if self.decoded.count < 2:
            return {"rfid": float("nan")}
        real = self.reference or self.real.statistics(self.extractor.name)
        decoded = self.decoded.statistics(self.extractor.name)
        metrics.note_few("rFID", decoded, real)
        return {"rfid": metrics.frechet_distance(decoded, real)}

    def protocol(self) -> dict[str, Any]:
        shape = {"size": f"{self.context.image_size} x {self.context.image_size}", "crop": "centre"}
        reference = self.context.reference
        return {
            "extractor": self.extractor.protocol(),
            "reference": {"images": "the originals", **shape}
            if not reference
            else {"file": file_sha256(reference)[:16], **shape},
        }


def read_reference(context: MeterContext, extractor: metrics.Extractor) -> metrics.Statistics:
    """The moments in ``context.reference``; a :class:`UserError` unless they are of as many images, cropped as these are."""
    statistics, wanted = metrics.Statistics.load(context.reference), centre_crop_name(context.image_size)
    for what, stated, expected in (
        ("extractor", statistics.extractor, context.extractor),
        ("fingerprint of the extractor's weights", statistics.weights or extractor.fingerprint, extractor.fingerprint),
        ("number of images", statistics.count, context.image_count),
        ("crop", statistics.crop, wanted),
    ):
        if stated != expected:
            raise UserError(
                f"the rFID reference {context.reference} has another {what} ({stated or 'not stated'}, where {expected} is wanted): make one with "
                f"`python fid_stats/compute.py <images> --extractor {context.extractor} --size {context.image_size} --out stats.npz`, "
                "or write evaluate.reference= to compare with the originals themselves"
            )
    return statistics


def centre_crop_name(size: int) -> str:
    """How a statistics file names the crop of :func:`flowprior.data.images.centre_crop`."""
    return f"centre {size}"
