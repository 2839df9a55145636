"""Target features from a file of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowprior.data.features import read_features
from flowprior.errors import UserError
from flowprior.training.config import option
from tokenizer.targets.base import TargetContext, TargetFeatures


@dataclass
class FileTarget:
    """source=file: any features of shape (N, d)."""

    path: str = option("", "a .npy, .npz, .pt or .safetensors file", changes_result=False)
    key: str = option("", "which array, where the file holds several")

    def load(self, context: TargetContext) -> TargetFeatures:
        if not self.path:
            raise UserError("target.source=file needs target.file.path=<features.npy>")
        return TargetFeatures(read_features(self.path, self.key), Path(self.path).name)
