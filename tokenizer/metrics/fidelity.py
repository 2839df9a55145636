"""PSNR and SSIM."""

from __future__ import annotations

from torch import Tensor

from flowprior import metrics
from tokenizer.metrics.base import Meter, MeterContext


class FidelityMeter(Meter):
    """``psnr`` in dB and ``ssim``, means over images."""

    def __init__(self, context: MeterContext) -> None:
        super().__init__(context)
        self.meter = metrics.ReconstructionMeter()

    def update(self, original: Tensor, reconstructed: Tensor) -> None:
        self.meter.update(original.to(self.context.device), reconstructed.to(self.context.device))

    def compute(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.meter.compute().items() if name != "count"}
