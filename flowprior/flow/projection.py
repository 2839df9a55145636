"""Fixed linear maps from target features (d2 channels) to latent channels (d1). They are never trained."""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTIONS = ("random", "avg_pool", "pca", "identity")


def projection_matrix(
    kind: str, in_channels: int, channels: int, *, features: Tensor | None = None, seed: int = 0
) -> Tensor:
    """The ``(d2, d1)`` float32 matrix ``W`` of ``x W``.

    Args:
        kind: ``random`` (entries from N(0, 1/d2): keeps the scale of isotropic features), ``avg_pool`` (means over channels,
            as adaptive average pooling forms its windows), ``pca`` (leading principal axes of ``features``), ``identity``.
        in_channels, channels: d2 and d1.
        features: normalised ``(N, d2)``, for ``pca`` only.
        seed: of the random matrix.

    Raises:
        ValueError: when the kind is unknown, the sizes do not allow it, or ``pca`` has no features.
    """
    if kind not in PROJECTIONS:
        raise ValueError(f"projection {kind!r} is unknown: write one of {', '.join(PROJECTIONS)}")
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(in_channels, channels, generator=generator) / in_channels**0.5
    if channels > in_channels or (kind == "identity" and channels != in_channels):
        raise ValueError(f"projection {kind!r} cannot make {channels} channels out of {in_channels}: use 'random'")
    if kind == "identity":
        return torch.eye(in_channels)
    if kind == "avg_pool":
        return torch.nn.functional.adaptive_avg_pool1d(torch.eye(in_channels), channels)
    if features is None:
        raise ValueError("projection 'pca' is computed from features: pass them")
    centred = features.double() - features.double().mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)  # ascending eigenvalues
    axes = axes.flip(-1)[:, :channels]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # eigenvectors have no sign: fix one
    return (axes * signs).float()
