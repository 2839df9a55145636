"""LeCam regularisation of a discriminator (Tseng et al. 2021, arXiv 2104.03310)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LeCam(nn.Module):
    """Keeps logits of real images near the running mean of reconstructions' logits from above, and the other way round.

    ``E max(0, D(x) - a_fake)^2 + E max(0, a_real - D(x'))^2``. The maximum is in the authors' code; their equation lacks it.

    Args:
        decay: of the running means.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """A scalar of two sets of logits; zero before the first :meth:`update`."""
        penalty = F.relu(real - self.fake).square().mean() + F.relu(self.real - fake).square().mean()
        return penalty * (self.steps > 0)

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Take this step's mean logits, of all processes, into the running means; the first ones are taken whole."""
        weight = torch.where(self.steps > 0, 1 - self.decay, 1.0)
        self.real.lerp_(real, weight)
        self.fake.lerp_(fake, weight)
        self.steps += 1
