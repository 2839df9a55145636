"""Measure sampled images: FID, inception score, precision and recall; sFID and FD of DINOv2 features where they are named.

    python -m mar.evaluate [--preset digits] [option=value ...]
    python -m mar.evaluate evaluate.samples=images.npz evaluate.reference=VIRTUAL_imagenet256_labeled.npz sample.count=50000 ...

Reads what mar.generate wrote, or with evaluate.samples draws it first, or reads an .npz or a folder of anybody's images; there must be
exactly sample.count of them. Writes <run_dir>/mar/evaluation.json (evaluation_<name>.json for an .npz or a folder) with the figures
and their protocol. Under torchrun the images are dealt out to all processes; the figures are the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import flowprior.metrics
from flowprior.data.image_archive import ImageArchive, archive_has_images
from flowprior.data.images import ImageConfig, open_images, shared_fingerprint
from flowprior.errors import UserError, entry_point
from flowprior.metrics import METRICS, Extractor, ImageSet, Statistics, evaluate_generation, half_half_fid
from flowprior.training.archives import archive_members
from flowprior.training.distributed import Workers, distributed_workers
from flowprior.training.files import file_sha256, read_json, write_json
from flowprior.training.lock import sole_writer
from mar.config import MARStageConfig, read_config
from mar.generate import draw_sets, protocol_of_set, same_protocol, samples_file

ONE_PROCESS = Workers()
MOST_COMPARED = 100_000


@entry_point
def main() -> None:
    config = read_config(__doc__)
    with (
        distributed_workers() as workers,
        sole_writer(Path(config.run_dir) / "mar", workers, may_be_read_only=result_file(config).is_file()),
    ):
        if config.evaluate.samples == "generate":
            draw_sets(config, workers)
        extractor = Extractor(
            config.evaluate.extractor, device=workers.device, weights_path=config.evaluate.weights or None
        )
        reference, identity = open_reference(config, extractor, workers)
        check_reference(config, identity["count"])
        made_by, file = protocol(config, extractor, identity), result_file(config)
        complete = file.is_file() and read_json(file, "evaluation").get("protocol") == made_by
        workers.barrier()  # nobody writes before everybody has looked
        if complete and workers.is_main:
            print(f"evaluation of the generator: complete ({file})")
        if not complete:
            result = evaluate(config, extractor, reference, workers)
            if workers.is_main:
                write_json(file, result | {"protocol": made_by})
        if workers.is_main:
            say(read_json(file, "evaluation"))


def check_reference(config: MARStageConfig, count: int) -> None:
    """A :class:`UserError` where precision and recall would keep the features of, and compare with, too many images."""
    if "precision_recall" in config.evaluate.chosen_metrics() and count > MOST_COMPARED:
        named = [name for name in config.evaluate.chosen_metrics() if name != "precision_recall"]
        raise UserError(
            f"precision and recall compare all features of {count} reference images, whose time is quadratic: write "
            f"evaluate.metrics=[{', '.join(named)}], or name a folder or .npz of {MOST_COMPARED} at most as evaluate.reference"
        )


def say(result: dict[str, Any]) -> None:
    """The figures, for the terminal."""
    for cfg, figures in result["metrics"].items():
        of = f"generator, cfg {cfg}" if "cfg" in result["protocol"]["samples"][cfg] else cfg
        print(f"{of}: " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    if "half_half_fid" in result:
        splits = result["half_half_fid"]
        print(
            f"FID of one half of the real images against the other, mean of {len(splits['splits'])} splits: {splits['mean']:.3f}"
        )


def result_file(config: MARStageConfig) -> Path:
    folder, samples = Path(config.run_dir) / "mar", config.evaluate.samples
    return folder / ("evaluation.json" if samples in ("", "generate") else f"evaluation_{Path(samples).stem}.json")


def open_reference(
    config: MARStageConfig, extractor: Extractor, workers: Workers = ONE_PROCESS
) -> tuple[ImageSet | Statistics, dict[str, Any]]:
    """What the samples are compared with, and which images or which file that is."""
    if not config.evaluate.reference.endswith(".npz"):
        data = config.data
        if not config.evaluate.uses_data:
            data = ImageConfig(source="folder", path=config.evaluate.reference, size=config.data.size)
        images = open_images(data)
        fingerprint = shared_fingerprint(images, workers)
        identity = {"images": fingerprint, "count": len(images), "size": config.data.size, "crop": "centre"}
        return ImageSet.of_source(images, extractor, progress=True, workers=workers), identity
    file = Path(config.evaluate.reference)
    if not file.is_file() or not archive_has_images(file):
        statistics = Statistics.load(file)
        if statistics.extractor not in (None, extractor.name):
            raise UserError(
                f"the statistics {file} are of features by '{statistics.extractor}': write evaluate.extractor={statistics.extractor}"
            )
        return statistics, {"statistics": file.name, "count": statistics.count, "sha256": file_sha256(file)}
    known = {}
    if {"mu.npy", "sigma.npy"} <= set(archive_members(file)):
        statistics = Statistics.load(file)
        known = {extractor.name: statistics}
        if statistics.spatial is not None:
            known["inception_spatial"] = statistics.spatial
    images = ImageSet.of_archive(file, extractor, progress=True, workers=workers, known=known)
    identity = {"images": file.name, "count": ImageArchive(file).count, "sha256": file_sha256(file)}
    return images, identity | {"moments": "of the file" if known else "of its images"}


def protocol(config: MARStageConfig, extractor: Extractor, reference: dict[str, Any]) -> dict[str, Any]:
    """How the figures come about: equal protocols mean equal figures. A :class:`UserError` for samples that are not as they should be."""
    chosen, package = config.evaluate.chosen_metrics(), Path(flowprior.metrics.__file__).parent
    own_weights = {name: file_sha256(package / METRICS[name].weights) for name in chosen if METRICS[name].weights}
    return {
        "reference": reference,
        "extractor": {"name": extractor.name, "weights": extractor.fingerprint},
        "metrics": list(chosen),
        "metric_weights": own_weights,
        "half_half_splits": config.evaluate.half_half_splits if config.evaluate.uses_data else 0,
        "dtype": "float32 features, float64 moments",
        "samples": samples_protocol(config),
    }


def samples_protocol(config: MARStageConfig) -> dict[str, Any]:
    """How each set of samples was made, or which file or folder it is; what is stale or not of this count is refused."""
    samples = config.evaluate.samples
    if samples.endswith(".npz"):
        archive = ImageArchive(samples)
        if config.evaluate.uses_data and set(archive.size) != {config.data.size}:
            height, width = archive.size
            raise UserError(
                f"the images in {samples} are {width} x {height} and the data they are compared with are cropped to {config.data.size}: "
                f"write data.size={height}, or another evaluate.reference"
            )
        return {Path(samples).name: {"count": archive.count, "sha256": file_sha256(Path(samples))}}
    if samples not in ("", "generate"):
        images = open_images(ImageConfig(source="folder", path=samples, size=config.data.size))
        return {Path(samples).name: {"images": images.fingerprint(), "count": len(images)}}
    made = {}
    for cfg in config.sample.cfg:
        note = samples_file(config, cfg).with_suffix(".json")
        kept = read_json(note, "set of samples (run `python -m mar.generate`)").get("protocol")
        wanted = protocol_of_set(config, cfg)
        if wanted is not None and not same_protocol(kept, wanted, config):
            raise UserError(
                f"the samples {note.with_suffix('.npz')} are of another generator or of other options: run `python -m mar.generate` again"
            )
        made[f"{cfg:g}"] = kept
    return made


def evaluate(
    config: MARStageConfig, extractor: Extractor, reference: ImageSet | Statistics, workers: Workers = ONE_PROCESS
) -> dict[str, Any]:
    """Figures of every set of samples, the best of them by FID, and how far one half of the real images lies from the other."""
    result: dict[str, Any] = {"metrics": {}}
    for name, images in open_samples(config, extractor, workers).items():
        result["metrics"][name] = evaluate_generation(images, reference, config.evaluate.chosen_metrics())
    if config.evaluate.half_half_splits and config.evaluate.uses_data and isinstance(reference, ImageSet):
        splits = [half_half_fid(reference, seed) for seed in range(config.evaluate.half_half_splits)]
        result["half_half_fid"] = {"mean": float(np.mean(splits)), "std": float(np.std(splits)), "splits": splits}
    if config.evaluate.samples_have_labels and all("fid" in figures for figures in result["metrics"].values()):
        result["best_cfg"] = min(result["metrics"], key=lambda cfg: result["metrics"][cfg]["fid"])
    return result


def open_samples(config: MARStageConfig, extractor: Extractor, workers: Workers) -> dict[str, ImageSet]:
    """Each set of samples by its guidance scale or its file's name; a :class:`UserError` unless it is whole and of this config's count."""
    samples, options = config.evaluate.samples, {"progress": True, "workers": workers}
    if samples in ("", "generate"):
        files = {f"{cfg:g}": samples_file(config, cfg) for cfg in config.sample.cfg}
    elif samples.endswith(".npz"):
        files = {Path(samples).name: Path(samples)}
    else:
        images = open_images(ImageConfig(source="folder", path=samples, size=config.data.size))
        check_count(len(images), samples, config)
        return {Path(samples).name: ImageSet.of_source(images, extractor, **options)}
    sets = {}
    for name, file in files.items():
        check_count(ImageArchive(file).count, file, config)
        sets[name] = ImageSet.of_archive(file, extractor, **options)
        if config.evaluate.samples_have_labels and sets[name].labels is None:
            raise UserError(f"{file} has no labels: delete it and run `python -m mar.generate`")
    return sets


def check_count(count: int, where: str | Path, config: MARStageConfig) -> None:
    if count != config.sample.count:
        raise UserError(
            f"{where} holds {count} images and sample.count is {config.sample.count}: run `python -m mar.generate` again, "
            f"or write sample.count={count}"
        )


if __name__ == "__main__":
    main()
