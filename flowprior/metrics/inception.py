"""Inception: torch-fidelity's network read where sFID looks, and the file with its weights."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from flowprior.errors import UserError
from flowprior.run.archives import load_pt

INCEPTION_SHA256 = "6726825d"  # how the hash of torch-fidelity's file begins


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


def inception_weights(weights_path: str | Path | None) -> Path:
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
    except UserError as error:
        raise UserError(f"{error}; {advice}") from error
    except Exception:  # of something else than Inception's dictionary
        recognised = False
    if not recognised:
        raise UserError(f"{path} is no file of Inception weights: it has no fc.weight of shape (1008, 2048); {advice}")
    return path
