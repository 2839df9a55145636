"""Target features from a file of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowprior.data.features import read_array
from flowprior.errors import UserError
from flowprior.run.config import option
from tokenizer.prior.targets.base import TargetContext, TargetFeatures


@dataclass
class FileTarget:
    """source=file: any features of shape (N, d), or (images, tokens, d), of which whole images are held out."""

    path: str = option("", "a .npy, .npz, .pt or .safetensors file", changes_result=False)
    key: str = option("", "which array, where the file holds several")
    rows_per_sample: int = option(
        0,
        "neighbouring rows of one image, which are held out together; 0: the tokens of (images, tokens, d), or 1 of (N, d)",
    )

    def __post_init__(self) -> None:
        if self.rows_per_sample < 0:
            raise ValueError("rows_per_sample cannot be negative")

    def load(self, context: TargetContext) -> TargetFeatures:
        if not self.path:
            raise UserError("target.source=file needs target.file.path=<features.npy>")
        array = read_array(self.path, self.key)
        rows = array.reshape(-1, array.shape[-1])
        each = self.rows_per_sample or (array.shape[1] if array.dim() == 3 else 1)
        if len(rows) % each:
            raise UserError(
                f"{self.path} holds {len(rows)} rows, which are no multiple of {each}: write another target.file.rows_per_sample"
            )
        return TargetFeatures(rows, Path(self.path).name, each)
