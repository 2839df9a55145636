"""The discrete target: a codebook out of a checkpoint, or one made by k-means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from flowprior.data.features import read_features
from flowprior.data.images import ImageSource, open_images, shared_fingerprint, to_model
from flowprior.data.loader import indexed_batches
from flowprior.errors import UserError
from flowprior.flow.target_map import count_bad_rows
from flowprior.run.config import option
from flowprior.training.randomness import stream_seed
from tokenizer.prior.targets.base import TargetContext, TargetFeatures, computed_once

POINTS_PER_CLUSTER = 256


@dataclass
class CodebookTarget:
    """source=codebook: the entries of a quantiser's codebook."""

    of: str = option(
        "file", "file (path and key below), patches (pixels of the data section's images), or another source's name"
    )
    path: str = option("", "a .npy, .npz, .pt or .safetensors file, for of=file", changes_result=False)
    key: str = option("", "which tensor of the file; dots between the names of nested dictionaries")
    clusters: int = option(0, "entries, found by k-means; 0: the rows of the file are the codebook")
    patch_size: int = option(8, "pixels on a side, for of=patches")
    iterations: int = option(25, "iterations of k-means")
    unit_length: bool = option(False, "divide every entry by its length, for quantisers that compare directions")

    def __post_init__(self) -> None:
        if self.clusters < 0 or min(self.iterations, self.patch_size) < 1:
            raise ValueError("clusters cannot be negative, and iterations and patch_size are at least 1")
        if self.of == "codebook":
            raise ValueError("of is file, patches or another source, not codebook itself")
        if self.of != "file" and not self.clusters:
            raise ValueError(f"a codebook of {self.of} is made by k-means: write clusters=1024, say")

    def load(self, context: TargetContext) -> TargetFeatures:
        """The entries ``(N, d)``, read or found by k-means."""
        if self.of == "file" and not self.path:
            raise UserError(
                "target.source=codebook needs target.codebook.path=<checkpoint>, or of=patches and clusters=1024"
            )
        if self.of == "patches":
            images = open_images(context.data)
            shown = shared_fingerprint(images, context.world)
            origin = f"patches {shown}"
            return self._clustered(context, origin, lambda count: self._patches(images, count, context), shown)
        if self.of == "file":
            entries = read_features(self.path, self.key, "target.codebook.key")
            source = TargetFeatures(entries, f"{Path(self.path).name} {self.key}".strip())
        else:
            source = context.other(self.of)
        if not self.clusters:
            return TargetFeatures(self._scaled(source.features), f"codebook {source.name}")
        origin = f"{source.name} {source.fingerprint()}"

        def drawn(count: int) -> Tensor:
            if not source.known_finite and (bad := count_bad_rows(source.features))[0]:
                raise UserError(
                    f"{source.name} holds NaN or infinite values in {bad[0]} of its {len(source.features)} rows, first in row {bad[1]}: "
                    "mend them or leave them out"
                )
            return random_rows(source.features, count, context.seed)

        return self._clustered(context, origin, drawn)

    def _clustered(
        self, context: TargetContext, origin: str, points: Callable[[int], Tensor], shown: str = ""
    ) -> TargetFeatures:
        """The centres of the points ``points(count)``, made once; ``shown`` is the images' fingerprint in ``origin``."""
        name = f"codebook: {self.clusters} k-means centres of {origin.rsplit(' ', 1)[0]}"

        def make() -> TargetFeatures:
            rows = points(self.clusters * POINTS_PER_CLUSTER)
            return TargetFeatures(self._scaled(k_means(rows, self.clusters, self.iterations, context.seed)), name)

        return computed_once(context, (replace(self, path=""), origin), make, shown)

    def _scaled(self, entries: Tensor) -> Tensor:
        return F.normalize(entries.float(), dim=-1) if self.unit_length else entries

    def _patches(self, images: ImageSource, count: int, context: TargetContext) -> Tensor:
        """About ``count`` patches, all those of images drawn at random, as pixels in [-1, 1]: ``(n, 3 patch_size^2)``."""
        size = context.data.size
        if size % self.patch_size:
            raise UserError(
                f"data.size {size} does not divide into patches of {self.patch_size} pixels: set target.codebook.patch_size"
            )
        generator = torch.Generator().manual_seed(stream_seed(context.seed, "codebook images"))
        wanted = -(-count // (size // self.patch_size) ** 2)
        chosen = torch.randperm(len(images), generator=generator)[:wanted].sort().values
        batches = indexed_batches(images, [part.tolist() for part in chosen.split(64)], context.loaders)
        unfolded = [F.unfold(to_model(batch["image"]), self.patch_size, stride=self.patch_size) for batch in batches]
        return rearrange(torch.cat(unfolded), "images pixels patches -> (images patches) pixels")


def random_rows(features: Tensor, count: int, seed: int) -> Tensor:
    """``count`` rows of ``features (N, d)`` drawn by ``seed``, or all of fewer, float32."""
    if count >= len(features):
        return features.float()
    generator = torch.Generator().manual_seed(stream_seed(seed, "codebook rows"))
    return features[torch.randperm(len(features), generator=generator)[:count].sort().values].float()


def k_means(points: Tensor, clusters: int, iterations: int, seed: int) -> Tensor:
    """The centres ``(clusters, d)`` that Faiss finds for ``points (n, d)``.

    Raises:
        UserError: fewer points than clusters, points that are not finite, or Faiss is not installed.
    """
    if len(points) < clusters:
        raise UserError(f"{len(points)} features cannot make {clusters} clusters: lower target.codebook.clusters")
    if not torch.isfinite(points).all():
        raise UserError("features that are not finite cannot be clustered: mend target.codebook's source")
    try:
        import faiss
    except ImportError:
        raise UserError("k-means needs Faiss: pip install faiss-cpu") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    search = faiss.Kmeans(
        points.shape[1],
        clusters,
        niter=iterations,
        seed=stream_seed(seed, "k-means") % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=POINTS_PER_CLUSTER,
    )
    search.train(np.ascontiguousarray(points.numpy(), dtype=np.float32))
    return torch.from_numpy(search.centroids)
