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
        self.project = mlp(channels, hidden, width) if hidden else nn.Linear(channels, width)

    @property
    def end_layers(self) -> list[nn.Module]:
        """Those that read the latents, and the one that writes features."""
        return [self.mixture, *ends(self.project)]

    def mixed(self, latents: Tensor) -> Tensor:
        """``(B, T, C)`` to ``(B, N, C)``."""
        return self.mixture(latents.transpose(1, 2)).transpose(1, 2)

    def forward(self, latents: Tensor) -> Tensor:
        """``(B, T, C)`` to ``(B, N, D)``."""
        return self.project(self.mixed(latents))


class TokenHead(nn.Module):
    """An MLP of every token, which stands for ``patches / tokens`` patches that are neighbours in their order, row by row.

    Args:
        tokens, channels: of the latents.
        patches, width: of the features.
        hidden: width of the MLP.

    Raises:
        ValueError: the patches do not divide among the tokens.
    """

    def __init__(self, tokens: int, channels: int, patches: int, width: int, hidden: int) -> None:
        super().__init__()
        if patches % tokens:
            raise ValueError(f"the features' {patches} patches do not divide among {tokens} tokens")
        self.repeats = patches // tokens
        self.project = mlp(channels, hidden, width)

    @property
    def end_layers(self) -> list[nn.Module]:
        """The one that reads the latents, and the one that writes features."""
        return ends(self.project)

    def forward(self, latents: Tensor) -> Tensor:
        """``(B, T, C)`` to ``(B, N, D)``."""
        return self.project(latents).repeat_interleave(self.repeats, dim=1)


def mlp(channels: int, hidden: int, width: int) -> nn.Sequential:
    """Three linear layers with SiLU between them."""
    return nn.Sequential(
        nn.Linear(channels, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width)
    )


def ends(project: nn.Module) -> list[nn.Module]:
    """First and last layer of an MLP; a single layer is both."""
    return [project[0], project[-1]] if isinstance(project, nn.Sequential) else [project]


def cosine_distance(predicted: Tensor, features: Tensor) -> Tensor:
    """``1 - cos`` of vectors in the last dimension, averaged."""
    return 1 - F.cosine_similarity(predicted.float(), features.float(), dim=-1).mean()
