"""Inception score (Salimans et al. 2016, arXiv 1606.03498), by torch-fidelity's function."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flowprior.errors import UserError
from flowprior.metrics.optional import library

if TYPE_CHECKING:
    from flowprior.metrics.image_set import ImageSet
    from flowprior.metrics.statistics import Statistics

SPLITS = 10
SHUFFLE_SEED = 2020  # torch-fidelity's


def inception_score(generated: ImageSet, reference: ImageSet | Statistics, split_size: int = 0) -> dict[str, float]:
    """Mean and deviation over splits of exp E KL(p(class | image) || p(class)), in [1, number of classes].

    It grows with the size of the splits: scores compare at one size only. ADM's evaluator has splits of 5,000 images, the last one
    smaller; torch-fidelity has ten equal ones, of 5,000 as well where there are 50,000 images. Images are shuffled first, as
    torch-fidelity does and ADM does not, since an archive in the order of its classes would have splits of few classes.

    Keys ``inception_score`` and ``inception_score_std``. The reference plays no part.

    Args:
        generated: at least one image a split.
        reference: of no account.
        split_size: images in a split; 0: ten equal splits.

    Raises:
        UserError: too few images.
    """
    logits = generated.features().logits  # (N, classes)
    if not split_size and len(logits) < SPLITS:
        raise UserError(f"the inception score needs at least {SPLITS} images, got {len(logits)}")
    order = torch.from_numpy(np.random.RandomState(SHUFFLE_SEED).permutation(len(logits)))
    bounds = split_bounds(len(logits), split_size)
    parts = [logits[order[first:last]] for first, last in zip(bounds, bounds[1:])]
    theirs = library("torch_fidelity.metric_isc")
    scores = [theirs.isc_features_to_metric(p, splits=1, shuffle=False)[theirs.KEY_METRIC_ISC_MEAN] for p in parts]
    return {"inception_score": float(np.mean(scores)), "inception_score_std": float(np.std(scores))}


def split_bounds(count: int, split_size: int = 0) -> list[int]:
    """Where the splits of ``count`` images begin, and the end of the last."""
    if not split_size:
        return [i * count // SPLITS for i in range(SPLITS + 1)]
    return [*range(0, count, split_size), count]


def split_protocol(count: int, split_size: int = 0) -> dict[str, Any]:
    """What a result says of the splits."""
    bounds = split_bounds(count, split_size)
    sizes = sorted({last - first for first, last in zip(bounds, bounds[1:])})
    return {"splits": len(bounds) - 1, "images per split": sizes, "order": "shuffled"}
