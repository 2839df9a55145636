"""The sets of images that are measured: the run's own, or anybody's in an .npz or a folder; how large they are and how they were made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flowprior.data.image_archive import ImageArchive
from flowprior.data.image_sizes import ImageSize, stored_sizes
from flowprior.data.images import FolderImages, ImageConfig, open_images, shared_fingerprint
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.metrics import Extractor, ImageSet
from flowprior.run.files import file_sha256
from generation.config import GenerationConfig
from generation.generate import protocols_of_sets, provenance_of_set, samples_file
from generation.reference import class_counts

ONE_PROCESS = World()


@dataclass(frozen=True)
class Samples:
    """Sets of images of one size: files, each an .npz with its name, or one folder.

    Attributes:
        size: of every image. It is the size of the comparison: samples are measured as they are, never resized.
        files: by guidance scale or name; empty where the samples are a folder.
        folder: the images in it, read at their size.
    """

    size: ImageSize
    files: dict[str, Path]
    folder: FolderImages | None = None

    def class_counts(self, least: int) -> dict[str, tuple[int, ...]]:
        """How many images of every class, ``least`` of them at least, each set has, where that is known."""
        if self.folder is not None:
            return {self.folder.root.name: class_counts(self.folder)} if self.folder.num_classes > 1 else {}
        labels = {name: ImageArchive(file).labels for name, file in self.files.items()}
        return {
            name: tuple(torch.bincount(of_set, minlength=least).tolist())
            for name, of_set in labels.items()
            if of_set is not None and of_set.min() >= 0
        }


def find_samples(config: GenerationConfig, world: World = ONE_PROCESS) -> Samples:
    """What ``config.evaluate.samples`` names.

    Raises:
        UserError: it is not there, is of several sizes, or lies in a folder and is not square.
    """
    where = config.evaluate.samples
    if config.evaluate.samples_have_labels:
        files = {f"{cfg:g}": samples_file(config, cfg) for cfg in config.sample.cfg}
        if missing := [file for file in files.values() if not file.is_file()]:
            raise UserError(f"there is no set of samples at {missing[0]}: run `{config.command('generate')}`")
    elif where.endswith(".npz"):
        files = {Path(where).name: Path(where)}
    else:
        return _folder(where, config.data.size, world)
    sizes = Counter(ImageSize(*ImageArchive(file).size) for file in files.values())
    return Samples(_only(sizes, ", ".join(map(str, files.values()))), files)


def _folder(path: str, size: int, world: World) -> Samples:
    def read(side: int) -> FolderImages:
        return open_images(ImageConfig(source="folder", path=path, size=side))  # type: ignore[return-value]

    images = read(size)
    stored = _only(Counter(world.broadcast(dict(stored_sizes(images)) if world.is_main else None)), path)
    if stored.height != stored.width:
        raise UserError(
            f"the samples in {path} are {stored}, and folders are read as squares: save them as arr_0 in an .npz"
        )
    return Samples(stored, {}, images if stored.height == size else read(stored.height))


def _only(sizes: Counter[ImageSize], where: str) -> ImageSize:
    if len(sizes) > 1:
        text = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(3))
        raise UserError(f"the samples in {where} are of {len(sizes)} sizes ({text}): save them at one size")
    return next(iter(sizes))


def samples_protocol(config: GenerationConfig, samples: Samples, world: World = ONE_PROCESS) -> dict[str, Any]:
    """How each set of samples was made, or which file or folder it is; what is stale or not of this count is refused."""
    shape = {"size": str(samples.size), "crop": "none"}
    if (images := samples.folder) is not None:
        return {images.root.name: {"images": shared_fingerprint(images, world), "count": len(images), **shape}}
    if not config.evaluate.samples_have_labels:
        return {
            name: {"count": ImageArchive(file).count, "sha256": file_sha256(file), **shape}
            for name, file in samples.files.items()
        }
    made, wanted_of = {}, protocols_of_sets(config)
    for cfg in config.sample.cfg:
        provenance, again = provenance_of_set(config, cfg), f"run `{config.command('generate')}` again"
        if not isinstance(kept := provenance.kept(), dict):
            raise UserError(f"{provenance.file} is missing or damaged: {again}")
        if cfg in wanted_of and (stale := provenance.differing(wanted_of[cfg], world)):
            raise UserError(f"the samples {samples_file(config, cfg)} are of another {' and '.join(stale)}: {again}")
        made[f"{cfg:g}"] = {**kept, **shape}
    return made


def open_samples(
    config: GenerationConfig, extractor: Extractor, samples: Samples, world: World = ONE_PROCESS
) -> dict[str, ImageSet]:
    """Each set of samples by its guidance scale or its file's name; a :class:`UserError` unless it is whole and of this config's count."""
    if (images := samples.folder) is not None:
        check_count(len(images), images.root, config)
        return {images.root.name: ImageSet.of_source(images, extractor, progress=True, world=world)}
    sets = {}
    for name, file in samples.files.items():
        check_count(ImageArchive(file).count, file, config)
        sets[name] = ImageSet.of_archive(file, extractor, progress=True, world=world)
        if config.evaluate.samples_have_labels and sets[name].labels is None:
            raise UserError(f"{file} has no labels: delete it and run `{config.command('generate')}`")
    return sets


def check_count(count: int, where: str | Path, config: GenerationConfig) -> None:
    """A :class:`UserError` unless a set has ``sample.count`` images."""
    if count != config.sample.count:
        raise UserError(
            f"{where} holds {count} images and sample.count is {config.sample.count}: run `{config.command('generate')}` again, "
            f"or write sample.count={count}"
        )
