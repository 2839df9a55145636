"""The sets of images that are measured: the run's own, or anybody's in an .npz or a folder; how large they are and how they were made."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from flowprior.data.image_archive import ImageArchive
from flowprior.data.image_sizes import ImageSize, stored_sizes
from flowprior.data.images import FolderImages, ImageConfig, open_images, shared_fingerprint
from flowprior.errors import UserError
from flowprior.metrics import Extractor, ImageSet
from flowprior.training.distributed import Workers
from flowprior.training.files import file_sha256, read_json
from mar.config import MARStageConfig
from mar.generate import protocol_of_set, same_protocol, samples_file

ONE_PROCESS = Workers()


def sample_files(config: MARStageConfig) -> dict[str, Path]:
    """The .npz of each set by its guidance scale or its name; none where the samples are a folder."""
    samples = config.evaluate.samples
    if config.evaluate.samples_have_labels:
        return {f"{cfg:g}": samples_file(config, cfg) for cfg in config.sample.cfg}
    return {Path(samples).name: Path(samples)} if samples.endswith(".npz") else {}


def samples_size(config: MARStageConfig, workers: Workers = ONE_PROCESS) -> ImageSize:
    """The one size of all samples, which is the size of the comparison: samples are measured as they are, never resized.

    Raises:
        UserError: they have several sizes, or lie in a folder and are not square.
    """
    where = config.evaluate.samples
    if files := sample_files(config):
        missing = [file for file in files.values() if not file.is_file()]
        if missing and config.evaluate.samples_have_labels:
            raise UserError(f"there is no set of samples at {missing[0]}: run `python -m mar.generate`")
        sizes = Counter(ImageSize(*ImageArchive(file).size) for file in files.values())
        where = ", ".join(map(str, files.values()))
    else:
        images = _folder(where, config.data.size)
        sizes = Counter(workers.share(dict(stored_sizes(images)) if workers.is_main else None))
    if len(sizes) > 1:
        told = ", ".join(f"{count} of {size}" for size, count in sizes.most_common(3))
        raise UserError(f"the samples in {where} are of {len(sizes)} sizes ({told}): save them at one size")
    [size] = sizes
    if not files and size.height != size.width:
        raise UserError(
            f"the samples in {where} are {size}, and folders are read as squares: save them as arr_0 in an .npz"
        )
    return size


def samples_protocol(config: MARStageConfig, size: ImageSize, workers: Workers = ONE_PROCESS) -> dict[str, Any]:
    """How each set of samples was made, or which file or folder it is; what is stale or not of this count is refused."""
    samples, seen = config.evaluate.samples, {"size": str(size), "crop": "none"}
    if not sample_files(config):
        images = _folder(samples, size.height)
        return {Path(samples).name: {"images": shared_fingerprint(images, workers), "count": len(images), **seen}}
    if not config.evaluate.samples_have_labels:
        archive = ImageArchive(samples)
        return {Path(samples).name: {"count": archive.count, "sha256": file_sha256(Path(samples)), **seen}}
    made = {}
    for cfg in config.sample.cfg:
        note = samples_file(config, cfg).with_suffix(".json")
        kept = read_json(note, "set of samples (run `python -m mar.generate`)").get("protocol")
        wanted = protocol_of_set(config, cfg)
        if wanted is not None and not same_protocol(kept, wanted, config):
            raise UserError(
                f"the samples {note.with_suffix('.npz')} are of another generator or of other options: run `python -m mar.generate` again"
            )
        if not isinstance(kept, dict):
            raise UserError(f"{note} is damaged: run `python -m mar.generate` again")
        made[f"{cfg:g}"] = {**kept, **seen}
    return made


def open_samples(
    config: MARStageConfig, extractor: Extractor, size: ImageSize, workers: Workers = ONE_PROCESS
) -> dict[str, ImageSet]:
    """Each set of samples by its guidance scale or its file's name; a :class:`UserError` unless it is whole and of this config's count."""
    samples, files, sets = config.evaluate.samples, sample_files(config), {}
    if not files:
        images = _folder(samples, size.height)
        check_count(len(images), samples, config)
        return {Path(samples).name: ImageSet.of_source(images, extractor, progress=True, workers=workers)}
    for name, file in files.items():
        check_count(ImageArchive(file).count, file, config)
        sets[name] = ImageSet.of_archive(file, extractor, progress=True, workers=workers)
        if config.evaluate.samples_have_labels and sets[name].labels is None:
            raise UserError(f"{file} has no labels: delete it and run `python -m mar.generate`")
    return sets


def check_count(count: int, where: str | Path, config: MARStageConfig) -> None:
    """A :class:`UserError` unless a set has ``sample.count`` images."""
    if count != config.sample.count:
        raise UserError(
            f"{where} holds {count} images and sample.count is {config.sample.count}: run `python -m mar.generate` again, "
            f"or write sample.count={count}"
        )


def _folder(path: str, size: int) -> FolderImages:
    return open_images(ImageConfig(source="folder", path=path, size=size))  # type: ignore[return-value]
