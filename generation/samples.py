"""The sets of images that are measured: the run's own, or anybody's, in an .npz or elsewhere; how large they are and how they were made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flowprior.data.image_archive import ImageArchive
from flowprior.data.image_sizes import ImageSize, stored_sizes
from flowprior.data.images import ImageConfig, StoredImages, shared_fingerprint
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.metrics import Extractor, ImageSet
from flowprior.run.files import file_sha256
from generation.config import GenerationConfig
from generation.generate import protocols_of_sets, provenance_of_set, samples_file, stale_parts
from generation.labels import EQUAL
from generation.reference import class_counts

ONE_PROCESS = World()


@dataclass(frozen=True)
class Samples:
    """Sets of images of one size: files, each an .npz with its name, or images that lie elsewhere.

    Attributes:
        size: of every image. It is the size of the comparison: samples are measured as they are, never resized.
        files: by guidance scale or name; empty where the samples lie elsewhere.
        images: those, read at their size.
    """

    size: ImageSize
    files: dict[str, Path]
    images: StoredImages | None = None

    def class_counts(self, least: int) -> dict[str, tuple[int, ...]]:
        """How many images of every class, ``least`` of them at least, each set has, where that is known."""
        if self.images is not None:
            return {_name(self.images): class_counts(self.images)} if self.images.num_classes > 1 else {}
        labels = {name: ImageArchive(file).labels for name, file in self.files.items()}
        return {
            name: tuple(torch.bincount(of_set, minlength=least).tolist())
            for name, of_set in labels.items()
            if of_set is not None and of_set.min() >= 0
        }


def find_samples(config: GenerationConfig, world: World = ONE_PROCESS) -> Samples:
    """What ``config.evaluate.samples`` names.

    Raises:
        UserError: it is not there, is of several sizes, or lies in no .npz and is not square.
    """
    where = config.evaluate.samples
    if config.evaluate.samples_have_labels:
        files = {f"{cfg:g}": samples_file(config, cfg) for cfg in config.sample.cfg}
        if missing := [file for file in files.values() if not file.is_file()]:
            raise UserError(f"there is no set of samples at {missing[0]}: run `{config.command_here('generate')}`")
    elif where.endswith(".npz"):
        files = {Path(where).name: Path(where)}
    else:
        return _images(config.data.at(where), world)
    sizes = Counter(ImageSize(*ImageArchive(file).size) for file in files.values())
    return Samples(_only(sizes, ", ".join(map(str, files.values()))), files)


def _images(config: ImageConfig, world: World) -> Samples:
    images = StoredImages(config, seed=0)
    stored = _only(Counter(world.broadcast(dict(stored_sizes(images)) if world.is_main else None)), config.path)
    if stored.height != stored.width:
        raise UserError(
            f"the samples in {config.path} are {stored}, and images outside of an .npz are read as squares: save them as arr_0 in an .npz"
        )
    whole = images if stored.height == config.size else StoredImages(replace(config, size=stored.height), seed=0)
    return Samples(stored, {}, whole)


def _name(images: StoredImages) -> str:
    return Path(images.store.where).name


def _only(sizes: Counter[ImageSize], where: str) -> ImageSize:
    if len(sizes) > 1:
        text = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(3))
        raise UserError(f"the samples in {where} are of {len(sizes)} sizes ({text}): save them at one size")
    return next(iter(sizes))


def samples_protocol(config: GenerationConfig, samples: Samples, world: World = ONE_PROCESS) -> dict[str, Any]:
    """How each set of samples was made, or which images they are; what is stale or not of this count is refused."""
    shape = {"size": str(samples.size), "crop": "none"}
    if (images := samples.images) is not None:
        return {_name(images): {"images": shared_fingerprint(images, world), "count": len(images), **shape}}
    if not config.evaluate.samples_have_labels:
        return {
            name: {"count": ImageArchive(file).count, "sha256": file_sha256(file), **shape}
            for name, file in samples.files.items()
        }
    made, wanted_of = {}, protocols_of_sets(config)
    for cfg in config.sample.cfg:
        provenance, again = provenance_of_set(config, cfg), f"run `{config.command_here('generate')}` again"
        if not isinstance(kept := provenance.kept(), dict):
            raise UserError(f"{provenance.file} is missing or damaged: {again}")
        if cfg in wanted_of and (stale := stale_parts(config, cfg, *wanted_of[cfg], world)):
            remedy = _remedy_for_shares(config, kept) if stale == ["labels"] else again
            raise UserError(
                f"the samples {samples_file(config, cfg)} were made with other {' and '.join(stale)}: {remedy}"
            )
        made[f"{cfg:g}"] = {**kept, **shape}
    return made


def _remedy_for_shares(config: GenerationConfig, kept: dict[str, Any]) -> str:
    """What to do with samples in other class shares than those of the reference."""
    same = f"evaluate.reference={config.evaluate.reference}"
    now = "equal" if kept.get("labels") == EQUAL.description else "data"
    return (
        f"their classes are in the shares of another reference than {same}; run `{config.command_here('generate')} {same}` with the run's other "
        f"options, or write sample.class_shares={now} to measure them as they are"
    )


def open_samples(
    config: GenerationConfig, extractor: Extractor, samples: Samples, world: World = ONE_PROCESS
) -> dict[str, ImageSet]:
    """Each set of samples by its guidance scale or its file's name; a :class:`UserError` unless it is whole and of this config's count."""
    if (images := samples.images) is not None:
        check_count(len(images), images.store.where, config)
        return {_name(images): ImageSet.of_source(images, extractor, progress=True, world=world)}
    sets = {}
    for name, file in samples.files.items():
        check_count(ImageArchive(file).count, file, config)
        sets[name] = ImageSet.of_archive(file, extractor, progress=True, world=world)
        if config.evaluate.samples_have_labels and sets[name].labels is None:
            raise UserError(f"{file} has no labels: delete it and run `{config.command_here('generate')}`")
    return sets


def check_count(count: int, where: str | Path, config: GenerationConfig) -> None:
    """A :class:`UserError` unless a set has ``sample.count`` images."""
    if count != config.sample.count:
        raise UserError(
            f"{where} holds {count} images and sample.count is {config.sample.count}: run `{config.command_here('generate')}` again, "
            f"or write sample.count={count}"
        )
