"""The scale of cached latents: measured on the cache, kept in its manifest, carried by the generator that was trained with it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.data.latent_cache import LatentCache
from flowprior.data.order import SampleKey
from flowprior.errors import UserError
from flowprior.run.files import read_json, write_json


class LatentNormaliser(nn.Module):
    """The one owner of the latents' scale: ``(latents - mean) * scale`` for the generator, and back for the decoder."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    @classmethod
    def from_statistics(cls, statistics: dict[str, Any], per: str) -> LatentNormaliser:
        """From what :func:`measure_statistics` put into a manifest."""
        normaliser = cls(len(statistics["channel_std"]))
        if per == "channel":
            normaliser.mean.copy_(torch.tensor(statistics["channel_mean"]))
            normaliser.scale.copy_(1 / torch.tensor(statistics["channel_std"]).clamp(min=1e-6))
        else:
            normaliser.scale.fill_(statistics["scale"])
        return normaliser

    def forward(self, latents: Tensor) -> Tensor:
        """Raw latents ``(..., C)`` as the generator sees them."""
        return (latents.float() - self.mean) * self.scale

    def undo(self, latents: Tensor) -> Tensor:
        """The generator's latents ``(..., C)`` as the decoder wants them."""
        return latents / self.scale + self.mean


def measure_statistics(cache: LatentCache, samples: int, seed: int = 0) -> dict[str, Any]:
    """Minimum, maximum, mean, standard deviation (also per channel) and ``scale = 1 / std`` of a random subset of images."""
    chosen = torch.randperm(len(cache), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    epoch = 0 if cache.moments else -1  # the scale is that of what training sees, draws and not means
    latents = torch.cat(
        [
            cache.batch([SampleKey(i, epoch) for i in chosen[first : first + 1024]])["latents"]
            for first in range(0, len(chosen), 1024)
        ]
    )
    tokens = latents.flatten(0, 1).double()  # (N T, C)
    std = tokens.std().item()
    if not math.isfinite(std) or std == 0:
        raise UserError(f"the latents in {cache.folder} are constant or not finite: train the autoencoder again")
    return {
        "images": len(chosen),
        "min": tokens.min().item(),
        "max": tokens.max().item(),
        "mean": tokens.mean().item(),
        "std": std,
        "channel_mean": tokens.mean(0).tolist(),
        "channel_std": tokens.std(0).tolist(),
        "scale": 1 / std,
    }


def check_statistics(cache: LatentCache, measured_by: str = "estimate_scale") -> dict[str, Any]:
    """The statistics in the cache's manifest.

    Raises:
        UserError: there are none, or not of its channels; the command ``measured_by`` is named, which measures them.
    """
    file = cache.folder / "manifest.json"
    if "statistics" not in cache.manifest:
        raise UserError(f"the latent cache {cache.folder} has no scale: run `{measured_by}` first")
    statistics = cache.manifest["statistics"]
    try:
        rows = [statistics["channel_mean"], statistics["channel_std"], [statistics["scale"]] * cache.shape[1]]
        if torch.tensor(rows, dtype=torch.float64).isfinite().all() and min(rows[1]) >= 0 < statistics["scale"]:
            return statistics
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise UserError(f"the statistics in {file} are damaged: delete them there and run `{measured_by}`")


def store_statistics(folder: Path, statistics: dict[str, Any]) -> None:
    """Put the statistics into the cache's manifest."""
    manifest = read_json(folder / "manifest.json", "latent cache")
    write_json(folder / "manifest.json", manifest | {"statistics": statistics})
