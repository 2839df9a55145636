"""Features of many images: by a network, in batches, on all processes together, into a table on the disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowprior.data.features import read_features
from flowprior.data.images import ImageSource, shared_fingerprint
from flowprior.data.loader import indexed_batches
from flowprior.data.order import SampleKey
from flowprior.progress import progress_bar
from flowprior.run.config import option
from flowprior.run.fingerprints import accept_earlier
from flowprior.training.randomness import stream_seed
from tokenizer.prior.targets.base import TargetContext, TargetFeatures
from tokenizer.prior.targets.feature_table import FeatureTable, TableSizes

Encode = Callable[[Tensor], Tensor]  # uint8 (B, 3, S, S) on the device to features (B, P, d)
IMAGES_PER_CHUNK = 256


@dataclass
class ExtractionOptions:
    """What the sources that take features of images have in common."""

    tokens: int = option(0, "rows per image, drawn at random; 0: all that the model gives")
    rows: int = option(0, "rows in all, of images drawn at random; 0: of every image")
    dtype: Literal["float16", "float32"] = option("float16", "type of the features on the disk")
    batch: int = option(64, "images encoded at once", changes_result=False)

    def __post_init__(self) -> None:
        if min(self.tokens, self.rows) < 0 or self.batch < 1:
            raise ValueError("tokens and rows cannot be negative, and batch is at least 1")


def extracted_features(
    context: TargetContext,
    name: str,
    recipe: str,
    images: ImageSource,
    options: ExtractionOptions,
    make_encoder: Callable[[], Encode],
) -> TargetFeatures:
    """The table ``(N, d)`` of the features of ``images``, computed where it is not there yet.

    Args:
        context: every process calls this with its own.
        name: of the target.
        recipe: what determines the encoder.
        images: read without augmentation.
        options: see the class.
        make_encoder: builds the network, only when it is needed.
    """
    chosen = f"tokens {options.tokens} rows {options.rows} {options.dtype} seed {context.seed}"
    shown = shared_fingerprint(images, context.world)
    table = FeatureTable(context.folder, f"{recipe} images {shown} {chosen}")
    if (kept := table.kept_recipe()) is not None and accept_earlier(kept, shown, table.record_file) == table.made_from:
        table = FeatureTable(context.folder, kept)
    complete = table.is_complete()
    context.world.barrier()  # nobody writes before everybody has looked
    if not complete:
        _extract(context, table, images, options, make_encoder())
    record = table.record()
    return TargetFeatures(read_features(table.file), name, record["about"]["rows_per_image"], known_finite=True)


@torch.no_grad()
def _extract(
    context: TargetContext, table: FeatureTable, images: ImageSource, options: ExtractionOptions, encode: Encode
) -> None:
    world = context.world
    first = images.batch([SampleKey(0, -1)])["image"].to(world.device)
    _, positions, channels = _encoded(encode, first).shape
    per_image = min(options.tokens or positions, positions)
    index = _chosen_images(len(images), per_image, options.rows, context.seed)  # (images,)
    rows = min(len(index) * per_image, options.rows or len(index) * per_image)
    sizes = TableSizes(rows, channels, IMAGES_PER_CHUNK * per_image, options.dtype)
    if world.is_main:
        table.begin(sizes, {"rows_per_image": per_image, "images": len(index)})
    world.barrier()

    # Chunks keep their images whatever the number of processes, and so do the batches within them.
    missing = table.missing()
    world.barrier()  # nobody marks a chunk before everybody has looked which are missing
    mine = missing[world.rank :: world.size]
    parts = [part for chunk in mine for part in index.split(IMAGES_PER_CHUNK)[chunk].split(options.batch)]
    stream = indexed_batches(images, [part.tolist() for part in parts], context.loaders)
    bar = progress_bar(total=sum(map(len, parts)), desc="target features", unit="img", disable=not world.is_main)
    with bar:
        for chunk in mine:
            done = []
            for part in index.split(IMAGES_PER_CHUNK)[chunk].split(options.batch):
                features = _encoded(encode, next(stream)["image"].to(world.device, non_blocking=True))  # (B, P, d)
                done.append(_drawn_positions(features, part, per_image, context.seed).cpu())
                bar.update(len(part))
            table.write(chunk, torch.cat(done).flatten(0, 1), sizes)
    world.barrier()


def _encoded(encode: Encode, images: Tensor) -> Tensor:
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        return encode(images).float()


def _chosen_images(count: int, per_image: int, rows: int, seed: int) -> Tensor:
    """Which images, in ascending order: all, or as many as ``rows`` needs."""
    needed = -(-rows // per_image) if rows else count
    if needed >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(stream_seed(seed, "target images"))
    return torch.randperm(count, generator=generator)[:needed].sort().values


def _drawn_positions(features: Tensor, index: Tensor, per_image: int, seed: int) -> Tensor:
    """``per_image`` of the rows of each image, drawn by (seed, image): ``(B, P, d) -> (B, per_image, d)``."""
    if per_image == features.shape[1]:
        return features
    drawn = []
    for number in index.tolist():
        generator = torch.Generator().manual_seed(stream_seed(seed, "target positions", number))
        drawn.append(torch.randperm(features.shape[1], generator=generator)[:per_image].sort().values)
    rows = torch.stack(drawn).to(features.device)  # (B, per_image)
    return features.take_along_dim(rows.unsqueeze(-1), dim=1)
