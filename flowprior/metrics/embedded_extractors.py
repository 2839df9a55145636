"""The embedded data sets' extractors in the shape that torch-fidelity's registry wants."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from flowprior.metrics.digit_networks import load_extractor


class DigitsFeatureExtractor(FeatureExtractorBase):
    """An embedded data set's extractor in the shape that torch-fidelity's registry wants; layers ``64`` and ``logits``."""

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: object
    ) -> None:
        super().__init__(name, features_list)
        self.network = load_extractor(name.removesuffix("-cnn"), feature_extractor_weights_path)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 ``(B, 3, H, W)`` to the requested layers, float32 ``(B, 64)`` and ``(B, 10)``, in the order of the request."""
        layers = dict(zip(self.get_provided_features_list(), self.network(images)))
        return tuple(layers[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "64", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "64"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
