"""Images in, features and logits out: the extractors that FID, inception score, precision and recall stand on.

Both run inside torch-fidelity's own classes: Inception as it is there, the digits extractor through its registry, so
``torch_fidelity.calculate_metrics(feature_extractor="digits-cnn", ...)`` works as well once this module is imported.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor
from tqdm import tqdm

from flowprior.errors import UserError
from flowprior.metrics.digit_networks import load_extractor


class ExtractorSpec(NamedTuple):
    """An extractor under torch-fidelity's name, and its layers for each metric."""

    registered_name: str
    fid_layer: str
    isc_layer: str
    prc_layer: str


EXTRACTORS = {
    "digits": ExtractorSpec("digits-cnn", "64", "logits", "64"),
    "inception": ExtractorSpec("inception-v3-compat", "2048", "logits_unbiased", "2048"),
}


@dataclass(frozen=True)
class Features:
    """What an extractor saw in a set of images, on the CPU.

    Attributes:
        features: float32 ``(N, d)``, for FID, precision and recall.
        logits: float32 ``(N, c)``, for the inception score.
        extractor: a name of :data:`EXTRACTORS`.
    """

    features: Tensor
    logits: Tensor
    extractor: str

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or self.logits.ndim != 2 or len(self.features) != len(self.logits):
            shapes = f"{tuple(self.features.shape)} and {tuple(self.logits.shape)}"
            raise ValueError(f"expected features (N, d) and logits (N, c), got {shapes}")

    @property
    def count(self) -> int:
        """How many images."""
        return len(self.features)

    def subset(self, indices: Tensor) -> Features:
        """The features of some of the images, by index ``(M,)``."""
        return Features(self.features[indices], self.logits[indices], self.extractor)


class DigitsFeatureExtractor(FeatureExtractorBase):
    """The digits extractor in the shape that torch-fidelity's registry wants; layers ``64`` and ``logits``."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: object) -> None:
        super().__init__(name, features_list)
        self.network = load_extractor(feature_extractor_weights_path)

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


if EXTRACTORS["digits"].registered_name not in FEATURE_EXTRACTORS_REGISTRY:
    register_feature_extractor(EXTRACTORS["digits"].registered_name, DigitsFeatureExtractor)


def load_feature_extractor(
    extractor: str, *, device: str | torch.device = "cpu", weights_path: str | Path | None = None
) -> FeatureExtractorBase:
    """torch-fidelity's module for a name of :data:`EXTRACTORS`: uint8 ``(B, 3, H, W)`` to ``(features, logits)``.

    Raises:
        UserError: when the name is unknown, or the weights are not there and cannot be fetched.
    """
    if extractor not in EXTRACTORS:
        raise UserError(f"there is no feature extractor {extractor!r}; choose one of: {', '.join(EXTRACTORS)}")
    spec = EXTRACTORS[extractor]
    if spec.fid_layer != spec.prc_layer:
        raise NotImplementedError("Features holds one layer for FID, precision and recall")
    if extractor == "inception":
        weights_path = _inception_weights(weights_path)
    module = create_feature_extractor(
        spec.registered_name,
        [spec.fid_layer, spec.isc_layer],
        cuda=False,
        verbose=False,
        feature_extractor_weights_path=None if weights_path is None else str(weights_path),
    )
    return module.to(device)


def stream_features(
    images: Iterable[Tensor],
    extractor: str,
    *,
    device: str | torch.device = "cpu",
    weights_path: str | Path | None = None,
    progress: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each batch of uint8 images ``(B, 3, H, W)`` its float32 features ``(B, d)`` and logits ``(B, c)``, on ``device``."""
    module = load_feature_extractor(extractor, device=device, weights_path=weights_path)
    for batch in tqdm(images, desc=f"{extractor} features", unit="batch", disable=not progress):
        if not torch.is_tensor(batch) or batch.dtype != torch.uint8 or batch.ndim != 4 or batch.shape[1] != 3:
            found = f"{batch.dtype} {tuple(batch.shape)}" if torch.is_tensor(batch) else type(batch).__name__
            raise ValueError(f"expected batches of uint8 images (B, 3, H, W), got {found}")
        with torch.no_grad():
            features, logits = module(batch.to(device))
        yield features.float(), logits.float()


def extract_features(
    images: Iterable[Tensor],
    extractor: str,
    *,
    device: str | torch.device = "cpu",
    weights_path: str | Path | None = None,
    progress: bool = False,
) -> Features:
    """Run batches of images through an extractor, keeping the features only.

    Args:
        images: uint8 ``(B, 3, H, W)`` batches in [0, 255]; B may vary, and the extractor resizes as it was trained to.
        extractor: a name of :data:`EXTRACTORS`.
        weights_path: a file to read the extractor's weights from instead of the usual place.

    Raises:
        ValueError: for a batch of another dtype or shape, or for no batch at all.
        UserError: see :func:`load_feature_extractor`.
    """
    parts = [
        (features.cpu(), logits.cpu())
        for features, logits in stream_features(images, extractor, device=device, weights_path=weights_path, progress=progress)
    ]
    if not parts:
        raise ValueError("there are no images to extract features from")
    return Features(torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]), extractor)


def _inception_weights(weights_path: str | Path | None) -> Path:
    """The file with Inception's weights, fetched if need be and found to hold tensors only.

    torch-fidelity unpickles whatever it is given, hence the check beforehand.
    """
    file_name = URL_INCEPTION_V3.rsplit("/", 1)[-1]
    usual = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    path = Path(weights_path) if weights_path is not None else usual
    advice = f"download {URL_INCEPTION_V3} and put it at {usual}, or name another place with weights_path"
    if not path.is_file():
        if weights_path is not None:
            raise UserError(f"the Inception weights {path} do not exist; {advice}")
        try:
            os.makedirs(usual.parent, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(usual), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot fetch the Inception weights {file_name} ({error}); {advice}") from None
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        recognised = tuple(weights["fc.weight"].shape) == (1008, 2048)
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError):
        recognised = False
    if not recognised:
        raise UserError(f"{path} is damaged or no file of Inception weights; {advice}")
    return path
