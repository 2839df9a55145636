"""LPIPS distance, VGG."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flowprior.data.images import to_model
from flowprior.precision import full_float32, full_precision
from flowprior.run.files import tensors_fingerprint
from tokenizer.losses.perceptual import PerceptualLoss
from tokenizer.metrics.base import Meter, MeterContext


class LPIPSMeter(Meter):
    """``lpips``, a mean over images; lower is closer."""

    def __init__(self, context: MeterContext) -> None:
        super().__init__(context)
        self.distance = self.network(context.perceptual_weights).to(context.device)
        self.sum, self.count = 0.0, 0

    @staticmethod
    def network(weights: str) -> PerceptualLoss:
        """The distance; a :class:`UserError` where there are no weights for it."""
        return PerceptualLoss().load(
            weights, without="name the metrics without it, evaluate.metrics=[fidelity,rfid] say"
        )

    @torch.no_grad()
    def update(self, original: Tensor, reconstructed: Tensor) -> None:
        pair = (to_model(images.to(self.context.device)) for images in (reconstructed, original))
        with full_precision(self.context.device), full_float32():
            self.sum += self.distance.per_image(*pair).double().sum().item()
        self.count += len(original)

    def compute(self) -> dict[str, float]:
        return {"lpips": self.sum / self.count if self.count else float("nan")}

    def protocol(self) -> dict[str, Any]:
        return {"lpips": {"net": "vgg", "weights": tensors_fingerprint(self.distance.state_dict())}}
