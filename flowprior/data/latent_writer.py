"""The latent cache: every image encoded once, in memory-mapped shards, with a manifest that says what they are.

``latents-00000.safetensors`` holds ``latents`` (n, views, T, C) and ``labels`` (n,) of a fixed range of samples, so that no sample
is missing or comes twice whatever the number of processes; ``manifest.json`` is written last, and with it the cache is whole.
Of a gaussian autoencoder it may hold the moments, (n, views, T, 2 C): training then draws its latents anew in every epoch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from flowprior.data.images import ImageSource, to_model
from flowprior.data.latent_cache import FORMAT_VERSION, draw_latents
from flowprior.data.loader import indexed_batches
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.progress import progress_bar
from flowprior.run.config import option
from flowprior.run.files import (
    file_sha256,
    read_tensors,
    require_room,
    tensors_fingerprint,
    tensors_metadata,
    write_json,
    write_tensors,
)
from flowprior.run.run_folder import Stopwatch
from flowprior.training.randomness import stream_seed

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class CacheConfig:
    """How latents are cached."""

    flips: bool = option(False, "cache the mirrored image as well; training draws one of the two")
    ten_crop: bool = option(
        False, "cache corners and centre of the enlarged image, each mirrored as well, in place of the centre crop"
    )
    enlarge: float = option(1.1, "for ten_crop, the image's shorter side, as a multiple of a crop's")
    posterior: Literal["mean", "sample", "moments"] = option(
        "mean", "a gaussian autoencoder's mean, one draw per view, or both moments, drawn from in training"
    )
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "precision of the encoder; auto: bfloat16 autocast on a GPU, float32 on a CPU"
    )
    loader_workers: int = option(0, "processes that read images, per rank", changes_result=False, formerly="workers")
    hold: Literal["auto", "no"] = option(
        "auto",
        "in training, keep all latents on the GPU where they take at most half of its free memory",
        changes_result=False,
    )
    dtype: Literal["float16", "bfloat16", "float32"] = option("float16", "type of the stored latents")
    shard_images: int = option(4096, "images per shard")
    batch: int = option(128, "images encoded at once", changes_result=False)
    scale_samples: int = option(10_000, "images that the scale is measured on")
    scale_per: Literal["all", "channel", "token"] = option(
        "all",
        "one scale 1/std for all (the paper), mean and scale of every channel, or of every channel of every token",
    )

    def __post_init__(self) -> None:
        if min(self.shard_images, self.batch, self.scale_samples) < 1:
            raise ValueError("shard_images, batch and scale_samples are at least 1")
        if self.loader_workers < 0 or not 1 < self.enlarge <= 2:
            raise ValueError("loader_workers is 0 or more, enlarge lies in (1, 2]")
        if self.flips and self.ten_crop:
            raise ValueError("ten_crop mirrors every crop already: leave out flips")

    def image_size(self, size: int) -> int:
        """The side of the images that crops of ``size`` pixels are cut from."""
        return round(size * self.enlarge) if self.ten_crop else size

    def views(self, images: Tensor, size: int) -> list[Tensor]:
        """The views ``(B, 3, size, size)`` of ``images (B, 3, S, S)`` that are cached, the evaluation's first."""
        if not self.ten_crop:
            return [images, images.flip(-1)] if self.flips else [images]
        far, middle = images.shape[-1] - size, (images.shape[-1] - size) // 2
        corners = [(middle, middle), (0, 0), (0, far), (far, 0), (far, far)]
        crops = [images[..., top : top + size, left : left + size] for top, left in corners]
        return crops + [crop.flip(-1) for crop in crops]

    def describe(self) -> dict[str, Any]:
        """What belongs to a cache's origin, of these options; those that were added later only where they are in use."""
        later = {
            "ten_crop": self.enlarge if self.ten_crop else None,
            "posterior": self.posterior,
            "precision": self.precision,
        }
        unused = {"ten_crop": None, "posterior": "mean", "precision": "auto"}
        return {"flips": self.flips, "dtype": self.dtype} | {n: v for n, v in later.items() if v != unused[n]}


def write_latent_cache(
    folder: Path,
    images: ImageSource,
    encode: Callable[[Tensor], Tensor],
    config: CacheConfig,
    origin: dict[str, Any],
    world: World,
    size: int | None = None,
    place: str = "",
    stopwatch: Stopwatch | None = None,
) -> None:
    """Encode every image and write the cache; shards that an interrupted run left whole are kept.

    Args:
        folder: of the cache.
        images: read in their own order, without augmentation.
        encode: model images ``(B, 3, H, H)`` in [-1, 1] to latents ``(B, T, C)``; to mean and log-variance ``(B, T, 2 C)`` where
            ``config.posterior`` is not ``mean``.
        config: see the class.
        origin: fingerprints of encoder and images: what a reader must agree with.
        world: shards are dealt out to all processes.
        size: H; the images' own if not given.
        place: where the images lie, for the manifest.
        stopwatch: saved with every shard; it restarts where none of the first process's shards is kept.

    Raises:
        UserError: an image cannot be read, latents are not finite in the cache's dtype, or the disk has too little room.
    """
    shards = math.ceil(len(images) / config.shard_images)
    mark = str(stream_seed(str(sorted(origin.items())), config.flips, config.dtype, config.shard_images))
    files = [folder / f"latents-{shard:05d}.safetensors" for shard in range(shards)]
    missing = [s for s in range(world.rank, shards, world.size) if not _is_shard(files[s], mark)]
    stopwatch = stopwatch if world.is_main else None
    if stopwatch and len(missing) == len(range(0, shards, world.size)):
        stopwatch.restart()
    ranges = {shard: _shard_batches(shard, config, images) for shard in missing}
    batches = indexed_batches(images, [batch for shard in missing for batch in ranges[shard]], config.loader_workers)
    bar = progress_bar(
        total=sum(len(batch) for shard in missing for batch in ranges[shard]),
        desc="cache latents",
        unit="img",
        disable=not world.is_main,
    )
    with bar, torch.no_grad():
        for done, shard in enumerate(missing):
            latents, labels = [], []
            for batch in itertools.islice(batches, len(ranges[shard])):
                latents.append(_encoded(batch, encode, config, world.device, size))
                labels.append(batch["label"])
                bar.update(len(batch["label"]))
            tensors = {"latents": torch.cat(latents), "labels": torch.cat(labels)}
            shard_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
            require_room(
                folder,
                shard_bytes * (1 if done else len(missing) * world.size),
                f"the latent cache of {len(images)} images",
            )
            write_tensors(files[shard], tensors, _metadata(mark, tensors))
            if stopwatch:
                stopwatch.save()
    world.barrier()
    if world.is_main:
        write_json(folder / "manifest.json", _manifest(files, images, config, origin, place))
        if stopwatch:
            stopwatch.save()
    world.barrier()


def _encoded(
    batch: dict[str, Tensor],
    encode: Callable[[Tensor], Tensor],
    config: CacheConfig,
    device: torch.device,
    size: int | None,
) -> Tensor:
    """The latents ``(B, views, T, C)`` of a batch as they are stored, on the CPU."""
    pictures = to_model(batch["image"].to(device))
    views = [encode(view) for view in config.views(pictures, size or pictures.shape[-1])]
    if config.posterior == "sample":
        indices = batch["index"].tolist()
        views = [draw_latents(v, [("cache", i, n) for i in indices]) for n, v in enumerate(views)]
    latents = torch.stack(views, dim=1).to(DTYPES[config.dtype]).cpu()
    _check_finite(latents, batch["index"], config.dtype)
    return latents


def _manifest(
    files: list[Path], images: ImageSource, config: CacheConfig, origin: dict[str, Any], place: str
) -> dict[str, Any]:
    """What ``manifest.json`` says of the shards that lie there."""
    with safe_open(files[0], "pt") as first:
        _, views, tokens, channels = first.get_slice("latents").get_shape()
    moments = config.posterior == "moments"
    return {
        "format": FORMAT_VERSION,
        "count": len(images),
        "views": views,
        "tokens": tokens,
        "channels": channels // 2 if moments else channels,
        **({"moments": True} if moments else {}),
        "dtype": config.dtype,
        "kind": images.kind,
        "num_classes": images.num_classes,
        "class_names": images.class_names,
        "place": place or None,
        "origin": origin,
        "shards": [
            {"file": file.name, "rows": _rows(shard, config, images), "sha256": file_sha256(file)}
            for shard, file in enumerate(files)
        ],
    }


def _shard_batches(shard: int, config: CacheConfig, images: ImageSource) -> list[range]:
    start = shard * config.shard_images
    end = start + _rows(shard, config, images)
    return [range(first, min(first + config.batch, end)) for first in range(start, end, config.batch)]


def _rows(shard: int, config: CacheConfig, images: ImageSource) -> int:
    return min(config.shard_images, len(images) - shard * config.shard_images)


def _metadata(mark: str, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Of a shard: one entry, since safetensors writes several in an order of its own, and shards are compared by their bytes."""
    return {"origin": f"{mark} {tensors_fingerprint(tensors)}"}


def _is_shard(file: Path, mark: str) -> bool:
    """Whether ``file`` is a whole and unchanged shard of this very cache."""
    if not file.is_file():
        return False
    try:
        return tensors_metadata(file) == _metadata(mark, read_tensors(file, "shard"))
    except UserError:
        return False


def _check_finite(latents: Tensor, index: Tensor, dtype: str) -> None:
    finite = torch.isfinite(latents).flatten(1).all(1)  # (B,)
    if not finite.all():
        number = int(index[~finite][0])
        raise UserError(
            f"the latents of image {number} are not finite in {dtype}: write cache.dtype=float32, or train the autoencoder again"
        )
