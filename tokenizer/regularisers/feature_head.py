"""From latent tokens, which have no place in the image, to the patches of a frozen feature model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeatureHead(nn.Module):
    """Every patch is a learned mixture of the tokens (at first the nearest ones in their order), projected to the features' width.

    Args:
        tokens, channels: of the latents.
        patches, width: of the features.
        hidden: width of the MLP that projects; 0 for one linear layer.
    """

    def __init__(self, tokens: int, channels: int, patches: int, width: int, hidden: int = 0) -> None:
        super().__init__()
        self.mixture = nn.Linear(tokens, patches, bias=False)
        with torch.no_grad():
            self.mixture.weight.copy_(F.interpolate(torch.eye(tokens).unsqueeze(0), size=patches, mode="linear")[0].T)
        self.project: nn.Module = nn.Linear(channels, width)
        if hidden:
            self.project = nn.Sequential(
                nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width)
            )

    def mixed(self, latents: Tensor) -> Tensor:
        """``(B, T, C)`` to ``(B, N, C)``."""
        return self.mixture(latents.transpose(1, 2)).transpose(1, 2)

    def forward(self, latents: Tensor) -> Tensor:
        """``(B, T, C)`` to ``(B, N, D)``."""
        return self.project(self.mixed(latents))


def cosine_distance(predicted: Tensor, features: Tensor) -> Tensor:
    """``1 - cos`` of vectors in the last dimension, averaged."""
    return 1 - F.cosine_similarity(predicted.float(), features.float(), dim=-1).mean()
