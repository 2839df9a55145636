"""Fréchet distance between the features' moments (Heusel et al. 2017, arXiv 1706.08500), by torch-fidelity's function."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from flowprior.errors import UserError
from flowprior.metrics.optional import library
from flowprior.metrics.statistics import Statistics
from flowprior.notes import note

if TYPE_CHECKING:
    from flowprior.metrics.image_set import ImageSet


def fid(generated: ImageSet, reference: ImageSet | Statistics) -> dict[str, float]:
    """Distance of the generated images from the reference; key ``fid``."""
    real = reference if isinstance(reference, Statistics) else reference.statistics()
    drawn = generated.features().statistics()
    note_few("FID", drawn, real)
    return {"fid": frechet_distance(drawn, real)}


def sfid(generated: ImageSet, reference: ImageSet | Statistics) -> dict[str, float]:
    """Fréchet distance of spatial Inception features (Nash et al. 2021, arXiv 2103.03841, as ADM computes it); key ``sfid``.

    The reference's images, or spatial moments of its own (``mu_s`` and ``sigma_s`` in ADM's files), must be at hand.
    """
    return {"sfid": _distance_by("sFID", "inception_spatial", generated, reference, generated.extractor.weights_path)}


def fd_dinov2(generated: ImageSet, reference: ImageSet) -> dict[str, float]:
    """Fréchet distance of DINOv2 ViT-L/14 features (Stein et al. 2023, arXiv 2306.04675); key ``fd_dinov2``.

    Positions are resampled to 224 px as timm does it, with antialiasing. The authors' network resamples them without, so that its
    figures may differ.
    """
    return {"fd_dinov2": _distance_by("FD-DINOv2", "dinov2", generated, reference, None)}


def few_images(what: str, count: float, dimensions: int) -> str:
    """What to say of a Fréchet distance of ``count`` images on features of so many ``dimensions``, where these are too few; else empty."""
    if count > dimensions:
        return ""
    return (
        f"{what} is of {count} images on features of {dimensions} dimensions: so few have no covariance of full rank, and {what} lies far above "
        "that of more"
    )


def note_few(what: str, first: Statistics, second: Statistics) -> None:
    """Say so where one of two sets holds no more images than their features have dimensions."""
    if told := few_images(what, min(part.count or math.inf for part in (first, second)), len(first.mu)):
        note(told)


def _distance_by(
    what: str, name: str, generated: ImageSet, reference: ImageSet | Statistics, weights_path: str | Path | None
) -> float:
    from flowprior.metrics.extractors import Extractor  # with torch-fidelity

    extractor = Extractor(name, device=generated.extractor.device, weights_path=weights_path)
    if not isinstance(reference, Statistics):
        real = reference.statistics(extractor)
    elif reference.spatial is None or name != "inception_spatial":
        raise UserError(f"the reference holds no moments of {name} features: give its images")
    else:
        real = reference.spatial
    drawn = generated.statistics(extractor)
    note_few(what, drawn, real)
    return frechet_distance(drawn, real)


def frechet_distance(first: Statistics, second: Statistics) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), in the features' squared units.

    Raises:
        UserError: the two are by different extractors, or of images of different crops.
    """
    crops = {first.crop, second.crop} - {None}
    if len(crops) > 1:
        raise UserError(f"statistics of images cropped '{first.crop}' do not compare with '{second.crop}'")
    names = [part.extractor for part in (first, second)]
    if first.mu.shape != second.mu.shape or (None not in names and names[0] != names[1]):
        one, other = (
            f"{name or 'unknown'} features of {len(part.mu)} dimensions" for name, part in zip(names, (first, second))
        )
        raise UserError(f"statistics of {one} do not compare with {other}: they come from different extractors")
    theirs = library("torch_fidelity.metric_fid")
    moments = ({"mu": part.mu, "sigma": part.sigma} for part in (first, second))
    return theirs.fid_statistics_to_metric(*moments, verbose=False)[theirs.KEY_METRIC_FID]


def half_half_fid(real: ImageSet, seed: int) -> float:
    """FID of one random half of a set against the other half: a yardstick, and not a floor.

    FID of finite samples lies above that of their distributions, by an amount that falls as the counts grow. There are N / 2 images
    a side here, so this lies above what N generated images against all N real ones can reach.
    """
    features = real.features()
    order = torch.randperm(features.count, generator=torch.Generator().manual_seed(seed))
    half = features.count // 2
    return frechet_distance(*(features.subset(part).statistics() for part in (order[:half], order[half : 2 * half])))
