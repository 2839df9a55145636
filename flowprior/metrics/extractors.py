"""Images in, features and logits out: the extractors that FID, inception score, precision and recall stand on.

All run inside torch-fidelity's own classes: Inception as it is there, the digits' extractors through its registry, so
``torch_fidelity.calculate_metrics(feature_extractor="digits-cnn", ...)`` works as well once this module is imported.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor
from torch_fidelity.utils import create_feature_extractor

from flowprior.data.embedded import EMBEDDED
from flowprior.errors import UserError, one_line
from flowprior.metrics.digit_networks import load_extractor
from flowprior.metrics.registry import EXTRACTORS, check_extractor
from flowprior.metrics.statistics import Statistics, StreamingMoments
from flowprior.pretrained.timm_models import build_timm, hub_weights
from flowprior.run.archives import load_pt
from flowprior.run.files import file_sha256, tensors_fingerprint

CHUNK = 4096
INCEPTION_SHA256 = "6726825d"  # how the hash of torch-fidelity's file begins


@dataclass(frozen=True)
class Features:
    """What an extractor saw in a set of images; where two layers are one, they are one tensor.

    Attributes:
        fid: float32 ``(N, d)``, for FID.
        logits: float32 ``(N, c)``, for the inception score.
        prc: float32 ``(N, p)``, for precision and recall.
        extractor: a name of :data:`~flowprior.metrics.registry.EXTRACTORS`.
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
            raise UserError(f"FID needs at least 2 images, got {self.count}")
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


class Extractor:
    """A feature extractor with its weights on a device, loaded when it is first used.

    Args:
        name: of :data:`~flowprior.metrics.registry.EXTRACTORS`.
        device: where it computes.
        weights_path: a file to read the weights from instead of the usual place.

    Raises:
        UserError: the name is unknown; at first use, the weights are not there and cannot be fetched.
    """

    def __init__(
        self, name: str, *, device: str | torch.device = "cpu", weights_path: str | Path | None = None
    ) -> None:
        try:
            check_extractor(name)
        except ValueError as error:
            raise UserError(str(error)) from None
        self.name, self.device, self.weights_path = name, torch.device(device), weights_path

    @functools.cached_property
    def module(self) -> FeatureExtractorBase:
        """torch-fidelity's module."""
        spec = EXTRACTORS[self.name]
        inception = self.name in ("inception", "inception_spatial")
        path = _inception_weights(self.weights_path) if inception else self.weights_path
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
        if own and self.name.startswith("inception"):
            own = not file_sha256(Path(self.weights_path)).startswith(INCEPTION_SHA256)
        return "not stated, the weights are a person's own" if own else EXTRACTORS[self.name].trained_on

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Features of uint8 images ``(B, 3, H, W)``, on the extractor's device; it resizes as it was trained to."""
        if not torch.is_tensor(images) or images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            given = f"{images.dtype} {tuple(images.shape)}" if torch.is_tensor(images) else type(images).__name__
            raise ValueError(f"expected batches of uint8 images (B, 3, H, W), got {given}")
        spec, module = EXTRACTORS[self.name], self.module
        layers = {name: layer.float() for name, layer in zip(module.features_list, module(images.to(self.device)))}
        return Features(layers[spec.fid_layer], layers[spec.isc_layer], layers[spec.prc_layer], self.name)


def missing_weights(name: str, weights_path: str | Path | None = None) -> str:
    """Why the extractor called ``name`` cannot be had, in a sentence; empty where it can, fetched if need be."""
    try:
        _ = Extractor(name, weights_path=weights_path or None).module
    except UserError as error:
        return str(error)
    return ""


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


class SpatialInception(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception, read where sFID looks: 7 channels of the 17 x 17 maps of the seventh mixed block's 1 x 1 branch."""

    CHANNELS = 7

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 ``(B, 3, H, W)`` to float32 ``(B, 2023)``, in ADM's order: rows, columns, channels."""
        outputs: list[Tensor] = []
        hook = self.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        self.features_list = ["768"]  # the nearest of the usual layers behind it: nothing more is computed
        try:
            super().forward(images)
        finally:
            hook.remove()
            self.features_list = ["2023"]
        return (outputs[0][:, : self.CHANNELS].permute(0, 2, 3, 1).flatten(1).float(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("2023",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "2023"


class DINOv2FeatureExtractor(FeatureExtractorBase):
    """timm's DINOv2 ViT-L/14 at 224 pixels: the class token's features, layer ``1024``."""

    MODEL, SIDE = "vit_large_patch14_dinov2.lvd142m", 224
    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(
        self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None, **_: object
    ) -> None:
        super().__init__(name, features_list)
        own = feature_extractor_weights_path
        remedy = "name a .safetensors file (weights_path, or evaluate.weights beside evaluate.extractor=dinov2)"
        network = build_timm(
            self.MODEL,
            Path(own) if own else hub_weights(self.MODEL, remedy),
            img_size=self.SIDE,
            dynamic_img_size=False,
        )
        self.network = network.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 ``(B, 3, H, W)`` to float32 ``(B, 1024)``."""
        x = torch.nn.functional.interpolate(
            images.float() / 255, (self.SIDE, self.SIDE), mode="bicubic", align_corners=False, antialias=True
        ).clamp(0, 1)
        mean, std = (x.new_tensor(values).view(1, 3, 1, 1) for values in (self.MEAN, self.STD))
        return (self.network((x - mean) / std).float(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("1024",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "1024"

    @staticmethod
    def can_be_compiled() -> bool:
        return True

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, 224, 224, dtype=torch.uint8)


OWN = {
    **dict.fromkeys(EMBEDDED, DigitsFeatureExtractor),
    "inception_spatial": SpatialInception,
    "dinov2": DINOv2FeatureExtractor,
}
for _name, _extractor in OWN.items():
    if EXTRACTORS[_name].registered_name not in FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(EXTRACTORS[_name].registered_name, _extractor)


def _inception_weights(weights_path: str | Path | None) -> Path:
    """The file with Inception's weights, fetched if need be and found to hold tensors only.

    torch-fidelity unpickles whatever it is given, hence the check beforehand.
    """
    file_name = URL_INCEPTION_V3.rsplit("/", 1)[-1]
    usual = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    path = Path(weights_path) if weights_path is not None else usual
    advice = (
        f"download {URL_INCEPTION_V3} and put it at {usual}, or name another place (weights_path, or evaluate.weights)"
    )
    if not path.is_file():
        if weights_path is not None:
            raise UserError(f"the Inception weights {path} do not exist; {advice}")
        try:
            os.makedirs(usual.parent, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(usual), hash_prefix=INCEPTION_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot fetch the Inception weights {file_name} ({error}); {advice}") from None
    try:
        weights = load_pt(path, "file of Inception weights", map_location="cpu")
        recognised = tuple(weights["fc.weight"].shape) == (1008, 2048)
    except Exception as error:  # of a damaged file: the reader's stack machine fails in a dozen ways
        raise UserError(
            f"{path} is damaged or no file of Inception weights ({one_line(error, limit=400)}); {advice}"
        ) from error
    if not recognised:
        raise UserError(f"{path} is damaged or no file of Inception weights; {advice}")
    return path
