"""Samples measured by several extractors, each distance against a baseline's: FDr (arXiv 2604.28190), as ``evaluate.fdr`` asks for it."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowprior.data.image_archive import archive_has_images
from flowprior.data.image_sizes import ImageSize
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.metrics import Extractor, ImageSet, Statistics, frechet_distance
from flowprior.metrics.extractor_options import split_weights
from flowprior.metrics.fdr import baseline_distance, mean_ratio
from flowprior.metrics.precision_recall import precision_recall
from flowprior.notes import note
from flowprior.run.archives import check_expansion
from generation.config import GenerationConfig
from generation.reference import Reference, open_reference

SAME_DISTANCE = 1e-6  # of a distance: what the order of images changes


def named_extractor(text: str, device: str | torch.device = "cpu") -> Extractor:
    """The extractor that an entry of ``evaluate.fdr.extractors`` names; its weights are read when it is first used."""
    name, file = split_weights(text)
    return Extractor(name, device=device, weights_path=file)


class SeveralExtractors:
    """The extractors of ``evaluate.fdr``, with the moments of reference and baseline, which are kept in the generator's folder.

    Args:
        config: of the stage.
        reference: what samples are compared with.
        size: of every image.
        world: of all processes, which make the same calls.

    Raises:
        UserError: an extractor's weights cannot be had; the reference consists of moments, or the baseline does, is not there, has fewer than
            two images, is of another size or is the reference itself.
    """

    def __init__(self, config: GenerationConfig, reference: Reference, size: ImageSize, world: World) -> None:
        self.options, self.folder, self.world = config.evaluate.fdr, config.folder / "fdr", world
        self.extractors = [named_extractor(text, world.device) for text in self.options.extractors]
        about_baseline = replace(
            config, evaluate=replace(config.evaluate, reference=self.options.baseline, metrics=("fid",))
        )
        file = Path(self.options.baseline)
        if file.suffix == ".npz" and file.is_file():
            check_expansion(file, "baseline of FDr")
        moments_only = file.suffix == ".npz" and file.is_file() and not archive_has_images(file)
        for what, without_images in (
            ("evaluate.reference", isinstance(reference.images, Statistics)),
            ("evaluate.fdr.baseline", moments_only),
        ):
            if without_images:
                raise UserError(f"FDr looks at images, and {what} holds moments only")
        if file.suffix == ".npz" and not file.is_file():
            raise UserError(
                f"there is no baseline of FDr at {file}: save real images that the reference does not hold in it, as arr_0, uint8 "
                "(N, H, W, 3), or name a folder of images as evaluate.fdr.baseline"
            )
        baseline = open_reference(about_baseline, self.extractors[0], size, world, skip_known_moments=True)
        if _same_images(baseline, reference):
            raise UserError(
                "the baseline of FDr is the reference itself, at a distance of 0: name other images as evaluate.fdr.baseline"
            )
        check_baseline(baseline.identity["count"], config.sample.count, self.options.baseline, world)
        self.reference, self.baseline = map(_of_its_images, (reference, baseline))

    def protocol(self) -> dict[str, Any]:
        """What a result says of them."""
        return {
            "extractors": [extractor.protocol() for extractor in self.extractors],
            "baseline": self.baseline.identity,
            "precision_recall": self.options.precision_recall,
        }

    @functools.cached_property
    def baselines(self) -> dict[str, float]:
        """The baseline's distance from the reference by each extractor; a :class:`UserError` where it is rounding."""
        return {
            e.name: baseline_distance(self._moments("baseline", self.baseline, e), self._real(e), e.name)
            for e in self.extractors
        }

    def measure(self, images: ImageSet) -> dict[str, float]:
        """Each extractor's distance ``fd <name>``, precision and recall where they are asked for, and ``fdr<k>`` of all k."""
        metrics, distances = {}, {}
        for extractor in self.extractors:
            name = extractor.name
            if self.options.precision_recall:  # before the distance, which then takes the features that are there
                figures = precision_recall(images, self.reference.images, extractor)  # type: ignore[arg-type]
            distances[name] = frechet_distance(images.statistics(extractor), self._real(extractor))
            metrics[f"fd {name}"] = distances[name]
            if self.options.precision_recall:
                metrics |= {f"{metric} {name}": value for metric, value in figures.items()}
        return metrics | {f"fdr{len(distances)}": mean_ratio(distances, self.baselines)}

    def _real(self, extractor: Extractor) -> Statistics:
        return self._moments("reference", self.reference, extractor)

    def _moments(self, side: str, of: Reference, extractor: Extractor) -> Statistics:
        return of.moments(
            extractor, self.folder / f"{side}_{extractor.name.replace(':', '_').replace('/', '_')}.npz", self.world
        )


def check_baseline(count: int, samples: int, where: str, world: World) -> None:
    """A :class:`UserError` for a baseline without a covariance, and a note for one of fewer images than the samples.

    A Fréchet distance grows as images get fewer, so that FDr would come out too small.
    """
    if count < 2:
        raise UserError(
            f"the baseline of FDr, {where}, holds 1 image, which has no covariance: give as many images as sample.count={samples}"
        )
    if count < samples and world.is_main:
        note(
            f"the baseline of FDr, {where}, has {count} images and each set of samples {samples}: fewer images lie farther from the "
            "reference, so that FDr comes out too small; give as many"
        )


def likeness(metrics: dict[str, float | None], baselines: dict[str, float]) -> str:
    """A sentence where a set's distances are the baseline's own; empty otherwise."""
    pairs = [(metrics.get(f"fd {name}"), distance) for name, distance in baselines.items()]
    alike = [found is not None and math.isclose(found, distance, rel_tol=SAME_DISTANCE) for found, distance in pairs]
    if not (alike and all(alike)):
        return ""
    return "its distances are those of FDr's baseline, as where the baseline is made of these very samples: FDr is then 1 whatever they are"


def _same_images(first: Reference, second: Reference) -> bool:
    """Whether two sides are of the same files, at one size; the crop and moments beside the images make no others of them."""
    one, other = (
        {name: value for name, value in side.identity.items() if name not in ("crop", "moments")}
        for side in (first, second)
    )
    return one == other


def _of_its_images(reference: Reference) -> Reference:
    """Without moments that a file holds by one of the extractors: all look at the same images."""
    images = copy.copy(reference.images)
    images.known = {}  # type: ignore[union-attr]
    told = {"moments": "of its images"} if "moments" in reference.identity else {}
    return replace(reference, images=images, identity=reference.identity | told)
