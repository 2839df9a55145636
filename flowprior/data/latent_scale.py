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
    """The one owner of the latents' scale: ``(latents - mean) * scale`` for the generator, and back for the decoder.

    Args:
        shape: of mean and scale, ``(C,)`` or ``(T, C)``.
    """

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    @classmethod
    def from_statistics(cls, statistics: dict[str, Any], per: str) -> LatentNormaliser:
        """From what :func:`measure_statistics` put into a manifest, ``per`` being the option ``cache.scale_per``."""
        if per == "all":
            normaliser = cls(len(statistics["channel_std"]))
            normaliser.scale.fill_(statistics["scale"])
            return normaliser
        mean, std = (torch.tensor(statistics[f"{per}_{name}"]) for name in ("mean", "std"))
        normaliser = cls(*mean.shape)
        normaliser.mean.copy_(mean)
        normaliser.scale.copy_(1 / std.clamp(min=1e-6))
        return normaliser

    def forward(self, latents: Tensor) -> Tensor:
        """Raw latents ``(..., T, C)`` as the generator sees them."""
        return (latents.float() - self.mean) * self.scale

    def undo(self, latents: Tensor) -> Tensor:
        """The generator's latents ``(..., T, C)`` as the decoder wants them."""
        return latents / self.scale + self.mean


def measure_statistics(cache: LatentCache, samples: int, seed: int = 0) -> dict[str, Any]:
    """Of a random subset of images: minimum, maximum, mean, standard deviation, and ``scale = 1 / std``.

    The scale is that of what training sees: of a view and a draw of each image as in epoch 0, not of the evaluation's view and mean.
    Mean and deviation are there for every channel as well (``channel_mean``), and for every channel of every token (``token_mean``).
    """
    chosen = torch.randperm(len(cache), generator=torch.Generator().manual_seed(seed))[:samples].tolist()
    latents = torch.cat(
        [
            cache.batch([SampleKey(i, 0) for i in chosen[first : first + 1024]])["latents"]
            for first in range(0, len(chosen), 1024)
        ]
    )
    latents = latents.double()  # (N, T, C)
    tokens = latents.flatten(0, 1)
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
        "token_mean": latents.mean(0).tolist(),
        "token_std": latents.std(0, correction=min(1, len(latents) - 1)).tolist(),
        "scale": 1 / std,
    }


def check_statistics(cache: LatentCache, measured_by: str = "estimate_scale", per: str = "all") -> dict[str, Any]:
    """The statistics in the cache's manifest.

    Raises:
        UserError: there are none, not those that ``per``, the option ``cache.scale_per``, asks for, or not of its tokens and channels;
            the command ``measured_by`` is named, which measures them.
    """
    file = cache.folder / "manifest.json"
    statistics = cache.manifest.get("statistics")
    if statistics is None or per == "token" and isinstance(statistics, dict) and "token_std" not in statistics:
        missing = "no scale" if statistics is None else "no scale per token"
        raise UserError(f"the latent cache {cache.folder} has {missing}: run `{measured_by}` first")
    try:
        if 0 < statistics["scale"] < math.inf and all(
            _fits(statistics[f"{of}_{name}"], shape, least=0 if name == "std" else -math.inf)
            for of, shape in (("channel", cache.shape[1:]), ("token", cache.shape))
            if of == "channel" or of == per
            for name in ("mean", "std")
        ):
            return statistics
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        pass
    raise UserError(f"the statistics in {file} are damaged: delete them there and run `{measured_by}`")


def _fits(values: Any, shape: tuple[int, ...], least: float) -> bool:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.shape == tuple(shape) and bool((tensor.isfinite() & (tensor >= least)).all())


def store_statistics(folder: Path, statistics: dict[str, Any]) -> None:
    """Put the statistics into the cache's manifest."""
    manifest = read_json(folder / "manifest.json", "latent cache")
    write_json(folder / "manifest.json", manifest | {"statistics": statistics})
