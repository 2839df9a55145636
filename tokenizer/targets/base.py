"""What a target source gives: a table of features and where it came from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.training.files import tensors_fingerprint


class TargetFeatures(NamedTuple):
    """Features that the flow prior learns the distribution of."""

    features: Tensor  # (N, d2), floating point; may be memory-mapped
    name: str

    def fingerprint(self) -> str:
        """16 hex digits of shape and of up to 4,096 rows spread over the table."""
        rows = torch.linspace(0, len(self.features) - 1, min(4096, len(self.features))).long()
        return tensors_fingerprint({"rows": self.features[rows], "shape": torch.tensor(self.features.shape)})
