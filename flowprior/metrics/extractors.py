"""Images in, features and logits out: the extractors that FID, inception score, precision and recall stand on.

All are torch-fidelity's own classes: Inception as it is there, the digits' extractors through its registry, so
``torch_fidelity.calculate_metrics(feature_extractor="digits-cnn", ...)`` works as well once this module is imported.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from flowprior.data.embedded import EMBEDDED
from flowprior.errors import UserError
from flowprior.metrics.embedded_extractors import DigitsFeatureExtractor
from flowprior.metrics.features import Features
from flowprior.metrics.inception import INCEPTION_SHA256, SpatialInception, inception_weights
from flowprior.metrics.registry import EXTRACTORS, check_extractor, split_name
from flowprior.metrics.timm_extractors import DINOv2FeatureExtractor, TimmFeatureExtractor
from flowprior.precision import full_float32
from flowprior.pretrained.timm_models import timm_config
from flowprior.run.files import file_sha256, tensors_fingerprint


class Extractor:
    """A feature extractor with its weights on a device, loaded when it is first used.

    Args:
        name: of :data:`~flowprior.metrics.registry.EXTRACTORS`; of timm's models ``timm:<model>``, or ``timm:<model>@<pixels>``.
        device: where it computes.
        weights_path: a file to read the weights from instead of the usual place.

    Attributes:
        kind: of :data:`~flowprior.metrics.registry.EXTRACTORS`.

    Raises:
        UserError: the name is unknown, here or to timm; at first use, the weights do not fit, or are not there and cannot be fetched.
    """

    def __init__(
        self, name: str, *, device: str | torch.device = "cpu", weights_path: str | Path | None = None
    ) -> None:
        try:
            check_extractor(name)
            self.kind, self.model, self.size = split_name(name)
        except ValueError as error:
            raise UserError(str(error)) from None
        if self.model:
            timm_config(self.model)
        self.name, self.device, self.weights_path = name, torch.device(device), weights_path

    @functools.cached_property
    def module(self) -> FeatureExtractorBase:
        """torch-fidelity's module."""
        if self.kind == "timm":
            return TimmFeatureExtractor(self.model, self.size, self.weights_path).to(self.device)
        spec = EXTRACTORS[self.kind]
        inception = self.kind in ("inception", "inception_spatial")
        path = inception_weights(self.weights_path) if inception else self.weights_path
        layers = list(dict.fromkeys([spec.fid_layer, spec.isc_layer, spec.prc_layer]))
        module = create_feature_extractor(
            spec.registered_name,
            layers,
            cuda=False,
            verbose=False,
            feature_extractor_weights_path=None if path is None else str(path),
        )
        return module.to(self.device)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the weights."""
        return tensors_fingerprint(self.module.state_dict())

    @property
    def trained_on(self) -> str:
        """Which images its weights have seen; not stated for weights of somebody's own."""
        own = self.weights_path is not None
        if own and self.kind.startswith("inception"):
            own = not file_sha256(Path(self.weights_path)).startswith(INCEPTION_SHA256)
        return "not stated, the weights are a person's own" if own else EXTRACTORS[self.kind].trained_on

    def protocol(self) -> dict[str, Any]:
        """What a result says of the extractor: equal protocols mean equal features."""
        more = self.module.protocol() if self.kind == "timm" else {}
        return {"name": self.name, "weights": self.fingerprint, "trained on": self.trained_on, **more}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images ``(B, 3, H, W)``, on the extractor's device; it resizes as it was trained to."""
        if not torch.is_tensor(images) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            given = f"{images.dtype} {tuple(images.shape)}" if torch.is_tensor(images) else type(images).__name__
            raise ValueError(f"expected batches of uint8 images (B, 3, H, W), got {given}")
        spec, module = EXTRACTORS[self.kind], self.module
        with full_float32():
            found = module(images.to(self.device))
        layers = {name: layer.float() for name, layer in zip(module.features_list, found)}
        return Features(layers[spec.fid_layer], layers[spec.isc_layer], layers[spec.prc_layer], self.name)


def missing_weights(extractor: Extractor) -> str:
    """Why the extractor cannot be had, in a sentence; empty where it can, fetched if need be."""
    try:
        _ = extractor.module
    except UserError as error:
        return str(error)
    return ""


OWN = {
    **dict.fromkeys(EMBEDDED, DigitsFeatureExtractor),
    "inception_spatial": SpatialInception,
    "dinov2": DINOv2FeatureExtractor,
}
for _name, _extractor in OWN.items():
    if EXTRACTORS[_name].registered_name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(EXTRACTORS[_name].registered_name, _extractor)
