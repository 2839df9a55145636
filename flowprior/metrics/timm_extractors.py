"""Extractors that are timm's models: any of them, and the DINOv2 of FD-DINOv2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from flowprior.errors import UserError, one_line
from flowprior.metrics.extractor_options import TimmExtractor
from flowprior.notes import note
from flowprior.pretrained.timm_encoder import (
    TimmEncoder,
    built_at,
    patch_side,
    resampled,
    trained_size,
    whole_patches,
)
from flowprior.pretrained.timm_models import build_timm, hub_weights


class TimmFeatureExtractor(FeatureExtractorBase):
    """Pooled features of any timm model, layer ``pooled``.

    Args:
        model: timm's name, with or without a tag.
        size: pixels on a side that images are resampled to; 0: as timm states it for these weights.
        weights_path: file with the weights, in place of the hub's.

    Raises:
        UserError: timm knows no such model or cannot build it at this size, which its patches must divide unless its weights were trained
            at it; or its weights cannot be had or do not fit.
    """

    def __init__(self, model: str, size: int = 0, weights_path: str | Path | None = None) -> None:
        super().__init__(f"timm:{model}", ["pooled"])
        remedy = f"name its weight file (evaluate.timm.weights, or timm:{model}=<the file>)"
        if model == TimmExtractor.model:
            remedy += "; this network is the default, and evaluate.timm.model=<any timm model> names another"
        file = Path(weights_path) if weights_path else hub_weights(model, remedy)
        self.size = size or trained_size(model)
        network = built_at(model, self.size, file, seed=0)
        _check_patches(model, self.size, patch_side(network))
        self.encoder = TimmEncoder(network, "pooled", self.size).requires_grad_(False).eval()
        try:
            self.encoder(torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"'{model}' takes no images of {self.size} pixels ({one_line(error, limit=120)})"
            ) from error

    def protocol(self) -> dict[str, Any]:
        """What else a result says of the features."""
        config = self.encoder.model.pretrained_cfg
        return {
            "input": f"{self.size} x {self.size}, bicubic with antialiasing",
            "normalisation": {"mean": list(config["mean"]), "std": list(config["std"])},
            "features": "pooled",
        }

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 ``(B, 3, H, W)`` to float32 ``(B, d)``."""
        return (self.encoder(images).squeeze(1).float(),)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pooled",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "pooled"


def _check_patches(model: str, size: int, patch: int | None) -> None:
    """A :class:`UserError` where patches leave out the last rows and columns, unless they did so in training, which is said."""
    unseen = size % patch if patch else 0
    if unseen and size == trained_size(model):
        note(f"'{model}' does not see the last {unseen} rows and columns of {size} pixels, as in its training")
    elif unseen:
        nearest = whole_patches(size, patch)
        raise UserError(
            f"'{model}' sees patches of {patch} pixels, and not the last {unseen} of {size}: write timm:{model}@{nearest}, or "
            f"evaluate.timm.size={nearest}"
        )


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
        x = resampled(images, self.SIDE, white=1)
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
