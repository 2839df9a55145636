"""What samples are compared with: the data, other images, an .npz of images or of moments; at the samples' size, or not at all."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from flowprior.data.embedded import EMBEDDED
from flowprior.data.image_archive import ImageArchive, archive_has_images
from flowprior.data.image_sizes import ImageSize, stored_sizes
from flowprior.data.images import ImageConfig, ImageSource, open_images, shared_fingerprint
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.metrics import Extractor, ImageSet, Statistics
from flowprior.notes import note
from flowprior.run.archives import archive_members
from flowprior.run.files import file_sha256
from flowprior.run.provenance import Provenance
from generation.config import GenerationConfig

ONE_PROCESS = World()
MOST_COMPARED = 100_000


@dataclass(frozen=True)
class Reference:
    """Real images, or moments of their features.

    Attributes:
        images: what metrics compare with.
        identity: for the protocol: which images or which file, how many, at what size and crop.
        class_counts: images of every class, where that is known.
        class_names: of these classes, where they are known.
    """

    images: ImageSet | Statistics
    identity: dict[str, Any]
    class_counts: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def counts_by(self, names: Sequence[str]) -> tuple[int, ...] | None:
        """``class_counts`` in the order of ``names``, the samples' classes, see :func:`counts_by_name`."""
        return counts_by_name(self.class_counts, self.class_names, names)

    def moments(self, extractor: Extractor, file: Path, world: World = ONE_PROCESS) -> Statistics:
        """Of its images by ``extractor``, kept in ``file`` with what they were made from; or those that it consists of."""
        if isinstance(self.images, Statistics):
            return self.images
        provenance = Provenance(file.with_suffix(".json"), "note", of=file)
        about = extractor.protocol()
        made_from = self.identity | {name: value for name, value in about.items() if name not in ("name", "trained on")}
        if provenance.differing(made_from, world):
            moments = self.images.statistics(extractor)
            if extractor.name not in self.images.known:
                moments = replace(moments, weights=extractor.fingerprint)
            if world.is_main:
                provenance.file.unlink(missing_ok=True)
                moments.save(file)
                provenance.write(made_from)
            world.barrier()
        return Statistics.load(file)


def counts_by_name(
    counts: tuple[int, ...] | None, of: Sequence[str] | None, names: Sequence[str] | None
) -> tuple[int, ...] | None:
    """The images of every class in the order of ``names``; None where they are not known, or not of these classes.

    Args:
        counts: in the order of ``of``, its classes' names. Without names on one side, class n is class n.
    """
    if not counts or not of or not names or list(of) == list(names):
        return counts
    by_name = dict(zip(of, counts))
    # Of classes that share a name, none can be told by it.
    told_by_name = len(by_name) == len(of) and sorted(of) == sorted(names)
    return tuple(by_name[name] for name in names) if told_by_name else None


def open_reference(
    config: GenerationConfig,
    extractor: Extractor,
    size: ImageSize,
    world: World = ONE_PROCESS,
    skip_known_moments: bool = False,
) -> Reference:
    """The reference of ``config.evaluate`` for samples of ``size``; moments that an ``.npz`` holds beside its images are taken or skipped.

    Raises:
        UserError: it is of another size or crop, of another extractor, or cannot be read.
    """
    samples = f"the samples in {config.evaluate.samples_in(config.folder)} are {size}"
    if config.evaluate.uses_data:
        return _data(config, extractor, size, samples, world)
    file = Path(config.evaluate.reference)
    if file.suffix != ".npz":
        return _images(config.data.at(config.evaluate.reference, size=size.height), extractor, size, samples, world)
    if file.is_file() and archive_has_images(file):
        return _archive(file, extractor, size, samples, world, skip_known_moments)
    statistics = _statistics(file, extractor, size, samples)
    crop = statistics.crop_name
    if crop is None and world.is_main:
        note(f"{file} does not state the size and crop of its images: make sure that they are {size}")
    identity = {"statistics": file.name, "count": statistics.count, "sha256": file_sha256(file)}
    stated = {"size": str(size), "crop": crop} if crop else {"size": "not stated", "crop": "not stated"}
    return Reference(statistics, identity | stated, statistics.class_counts, statistics.class_names)


def check_counts(config: GenerationConfig, count: int | None) -> None:
    """A :class:`UserError` for an FID of one image, and where precision and recall would keep the features of, and compare with, too many:
    ``count`` of the reference."""
    chosen = config.evaluate.chosen_metrics()
    if "fid" in chosen and 1 in (config.sample.count, count):
        whose = "sample.count is 1" if config.sample.count == 1 else "the reference holds 1"
        raise UserError(f"FID compares means and covariances, and one image has no covariance: {whose}, give 2 or more")
    if count is None or count <= MOST_COMPARED:
        return
    named = ", ".join(name for name in chosen if name != "precision_recall")
    for wanted, remedy in (
        ("precision_recall" in chosen, f"evaluate.metrics=[{named}]"),
        (config.evaluate.fdr.precision_recall, "evaluate.fdr.precision_recall=false"),
    ):
        if wanted:
            raise UserError(
                f"precision and recall compare all features of {count} reference images, whose time is quadratic: write "
                f"{remedy}, or name images or an .npz of {MOST_COMPARED} at most as evaluate.reference"
            )


def class_counts(images: ImageSource) -> tuple[int, ...]:
    """How many images a source has of every class."""
    return tuple(np.bincount(np.asarray(images.labels), minlength=images.num_classes).tolist())  # type: ignore[attr-defined]


def classes_of_file(file: Path) -> tuple[tuple[int, ...] | None, tuple[str, ...] | None]:
    """How many images of every class an .npz states, of its moments or by the labels of its images, and the classes' names. None where it
    does not, and where all are of one class, as unlabelled images are."""
    members = set(archive_members(file))
    counts, names = None, None
    if {"mu.npy", "class_counts.npy"} <= members:
        statistics = Statistics.load(file)
        counts, names = statistics.class_counts, statistics.class_names
    elif "mu.npy" not in members and archive_has_images(file):
        labels = ImageArchive(file).labels
        counts = None if labels is None or labels.min() < 0 else tuple(np.bincount(labels.numpy()).tolist())
    return (None, None) if counts is None or len(counts) == 1 else (counts, names)


def _data(config: GenerationConfig, extractor: Extractor, size: ImageSize, samples: str, world: World) -> Reference:
    wanted = config.data.size
    if size != (wanted, wanted):
        square = size.height == size.width
        of_file = _reference_by_file(size, extractor, config.data)
        remedy = f"write data.size={size.height}, or {of_file}" if square else "write another evaluate.reference"
        raise UserError(f"{samples} and the data that they are compared with are cropped to {wanted}: {remedy}")
    return _source(open_images(config.data), size, "centre", extractor, world)


def _images(config: ImageConfig, extractor: Extractor, size: ImageSize, samples: str, world: World) -> Reference:
    images, where = open_images(config), config.path
    sizes = Counter(world.broadcast(dict(stored_sizes(images)) if world.is_main else None))  # type: ignore[arg-type]
    if set(sizes) == {size}:
        return _source(images, size, "none", extractor, world)
    cropped = f"write data.source=files data.path={where} data.size={size.height} evaluate.reference=data"
    if size.height != size.width:
        raise UserError(f"{samples}, and images such as those in {where} are cropped to squares: give an .npz")
    [common, *others] = sizes
    if not others and common.height == common.width:
        raise UserError(
            f"the images in {where} are {common} and {samples}: to compare with them resized to {size}, {cropped}, or "
            f"{_reference_by_file(size, extractor, config)}"
        )
    if world.is_main:
        small = sum(count for other, count in sizes.items() if min(other) < size.height)
        enlarged = f"; {small} of {len(images)} are smaller and are enlarged" if small else ""
        note(f"the images in {where} are cropped centrally to the samples' {size}{enlarged}")
    return _source(images, size, "centre", extractor, world)


def _source(images: ImageSource, size: ImageSize, crop: str, extractor: Extractor, world: World) -> Reference:
    identity = {"images": shared_fingerprint(images, world), "count": len(images), "size": str(size), "crop": crop}
    counts, names = (class_counts(images), tuple(images.class_names)) if images.num_classes > 1 else (None, None)
    return Reference(ImageSet.of_source(images, extractor, progress=True, world=world), identity, counts, names)


def _archive(
    file: Path, extractor: Extractor, size: ImageSize, samples: str, world: World, skip_known_moments: bool
) -> Reference:
    archive = ImageArchive(file)
    if (stored := ImageSize(*archive.size)) != size:
        remedy = "give images of one size"
        if size.height == size.width:
            remedy += f", or write {_reference_by_file(size, extractor)}"
        raise UserError(f"the images in {file} are {stored} and {samples}: {remedy}")
    known = {}
    has_moments = not skip_known_moments and {"mu.npy", "sigma.npy"} <= set(archive_members(file))
    if has_moments and _may_be_of(file, extractor):
        statistics = _statistics(file, extractor, size, samples)
        known = {extractor.name: statistics}
        if statistics.spatial is not None:
            known["inception_spatial"] = statistics.spatial
    images = ImageSet.of_archive(file, extractor, progress=True, world=world, known=known)
    identity = {
        "images": file.name,
        "count": archive.count,
        "sha256": file_sha256(file),
        "size": str(size),
        "crop": "none",
    }
    return Reference(
        images, identity | {"moments": "of the file" if known else "of its images"}, *classes_of_file(file)
    )


def _reference_by_file(size: ImageSize, extractor: Extractor, images: ImageConfig | None = None) -> str:
    """The option that names moments of ``images`` at the samples' size, and the command that makes them, for a message."""
    words = "<their files>"
    if images is not None:
        words = images.source if images.source in EMBEDDED else shlex.quote(images.path)
        words += " --cifar10" * (images.source == "cifar10")
    named = extractor.name + "=<its weights>" * (extractor.kind == "timm")
    command = f"python fid_stats/compute.py {words} --extractor {named} --size {size.height} --out stats.npz"
    return f"evaluate.reference=stats.npz, which `{command}` makes"


def _may_be_of(file: Path, extractor: Extractor) -> bool:
    """Whether moments beside images are this extractor's: those that do not say whose they are, are never a timm model's."""
    return extractor.kind != "timm" or Statistics.load(file).extractor is not None


def _statistics(file: Path, extractor: Extractor, size: ImageSize, samples: str) -> Statistics:
    """The moments in a file; a :class:`UserError` where it says that they are of another extractor, size or crop."""
    statistics = Statistics.load(file)
    again = f"make them with `python fid_stats/compute.py <source> --extractor {extractor.name}`"
    if statistics.extractor is None and extractor.kind == "timm":
        raise UserError(
            f"the statistics {file} do not state whose features they are of, so not {extractor.name}'s: {again}"
        )
    if statistics.extractor not in (None, extractor.name):
        raise UserError(
            f"the statistics {file} are of features by '{statistics.extractor}': write evaluate.extractor={statistics.extractor}"
        )
    if statistics.weights is not None and statistics.weights != extractor.fingerprint:
        raise UserError(
            f"the statistics {file} are of other weights of {extractor.name}, {statistics.weights} and not {extractor.fingerprint}: {again}"
        )
    if statistics.crop not in (None, f"centre {size.height}") or (statistics.crop and size.height != size.width):
        raise UserError(
            f"the statistics {file} are of images cropped '{statistics.crop}' and {samples}: make them anew with "
            f"`python fid_stats/compute.py <images> --extractor {extractor.name} --size {size.height} --out stats.npz`"
        )
    return statistics
