"""How often flow matching looks at each time: uniformly, or mostly at the middle of the path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowprior.run.config import option


@dataclass
class TimeConfig:
    """The distribution of training times in [0, 1]."""

    distribution: Literal["uniform", "logit_normal"] = option(
        "uniform", "how times are drawn: uniform (the paper), or logit_normal: the sigmoid of a normal number"
    )
    mean: float = option(0.0, "mean of the normal number; above 0 favours data, below 0 noise")
    std: float = option(1.0, "standard deviation of the normal number")

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std must be above 0, not {self.std}")

    def quantile(self, u: Tensor) -> Tensor:
        """Uniform numbers as times of this distribution, of the same shape; stratified numbers give stratified times."""
        if self.distribution == "uniform":
            return u
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
