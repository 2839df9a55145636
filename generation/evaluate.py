"""Measure sampled images: FID, inception score, precision and recall; sFID, FD of DINOv2 features and FDr of several
extractors where they are named.

    python -m <generator> evaluate [--preset digits] [option=value ...]
    python -m <generator> evaluate evaluate.samples=images.npz evaluate.reference=VIRTUAL_imagenet256_labeled.npz sample.count=50000 ...

Reads what generate wrote, or with evaluate.samples draws it first, or reads anybody's images, in an .npz or elsewhere; there must be
exactly sample.count of them, all of one size, at which the reference is read. Writes <run_dir>/<generator>/evaluation.json
(evaluation_<name>.json for anybody's) with the metrics and their protocol. Under torchrun the images are dealt out to all
processes; the metrics are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flowprior.metrics
from flowprior.data.embedded import NUM_CLASSES
from flowprior.data.stores.base import place_name
from flowprior.distributed import World, distributed_world
from flowprior.metrics import METRICS, Extractor, ImageSet, evaluate_generation, half_half_fid
from flowprior.metrics.inception_score import split_protocol
from flowprior.metrics.registry import foreign_images
from flowprior.notes import note
from flowprior.rounding import rounded
from flowprior.run.files import file_sha256, read_json
from flowprior.run.lock import sole_writer
from flowprior.run.provenance import Provenance
from generation.config import GenerationConfig
from generation.earlier import Earlier, by_guidance, earlier_figures, say_what_changes
from generation.fdr import SeveralExtractors, likeness
from generation.generate import draw_sets
from generation.labels import mismatch, total_variation
from generation.reference import Reference, check_counts, open_reference
from generation.samples import Samples, find_samples, open_samples, samples_protocol

ONE_PROCESS, NOTHING = World(), Earlier()


def main(stage: type[GenerationConfig]) -> None:
    config = stage.read(__doc__)
    with (
        distributed_world() as world,
        sole_writer(config.folder, world, may_be_read_only=result_file(config).is_file()),
    ):
        if config.evaluate.samples == "generate":
            draw_sets(config, world)
        extractor = config.evaluate.open_extractor(world.device)
        samples = find_samples(config, world)
        reference = open_reference(config, extractor, samples.size, world)
        check_counts(config, reference.identity["count"])
        several = SeveralExtractors(config, reference, samples.size, world) if config.evaluate.fdr.extractors else None
        made_by, file = protocol(config, extractor, samples, reference, world), result_file(config)
        if several:
            made_by["fdr"] = several.protocol()
        if world.is_main:
            warn(config, samples, reference)
        evaluation = Provenance(file, "evaluation", "protocol")
        kept = evaluation.kept()
        earlier = earlier_figures(config, file, kept, made_by)
        made_by["samples"] = by_guidance(earlier.protocols | made_by["samples"], config)
        if evaluation.differing(made_by, world):
            say_what_changes(file, kept, made_by)
            result = evaluate(config, extractor, samples, reference, world, several, earlier)
            if world.is_main:
                evaluation.write(made_by, **result)
        elif world.is_main:
            print(f"evaluation of the generator: complete ({file})")
        if world.is_main:
            say(read_json(file, "evaluation"))


def say(result: dict[str, Any]) -> None:
    """The metrics, for the terminal; on stderr why one is missing."""
    for cfg, metrics in result["metrics"].items():
        of = f"generator, cfg {cfg}" if "cfg" in result["protocol"]["samples"][cfg] else cfg
        # Rounding makes the distance of a set to itself a little less than 0.
        values = (
            f"{name} {rounded(0.0 if -5e-4 < value < 0 else value)}"
            for name, value in metrics.items()
            if value is not None
        )
        print(f"{of}: " + "  ".join(values))
        for name, reason in result.get("not_measured", {}).get(cfg, {}).items():
            note(f"{of}: no {name}: {reason}")
        if told := likeness(metrics, result.get("fdr_baseline", {})):
            note(f"{of}: {told}")
    if "half_half_fid" in result:
        splits = result["half_half_fid"]
        print(
            f"FID of one half of the real images against the other, mean of {len(splits['splits'])} splits: {rounded(splits['mean'])}  "
            "(half as many images a side, which raises it)"
        )


def warn(config: GenerationConfig, samples: Samples, reference: Reference) -> None:
    """One line on stderr for each way in which the two sides are not alike, or the extractor not made for them."""
    own = config.evaluate.samples_have_labels
    names, compared = names_of_samples(config, samples), reference.counts_by(names_of_samples(config, samples))
    notes = [unlike_names(names, reference.class_names or (), "generator" if own else "samples")]
    notes += [] if config.evaluate.own_weights else [says_of_extractor(config)]
    notes += [says_of_data(config, reference)]
    for name, counts in samples.class_counts(len(compared or ())).items() if compared else ():
        caveat = mismatch(counts, compared, names)
        remedy = "; sample.class_shares=auto draws them alike" if own and config.sample.class_shares != "auto" else ""
        notes.append(caveat and f"{f'cfg {name}' if own else name}: {caveat}{remedy}")
    for line in dict.fromkeys(filter(None, notes)):
        note(line)


def says_of_extractor(config: GenerationConfig) -> str:
    """What to say where the extractor was made for other images than those of the data, or may be for those of files; else empty."""
    measured, name = config.evaluate, config.evaluate.extractor_name
    of_data = measured.uses_data or measured.samples_have_labels
    told = foreign_images(name, config.data.source) if of_data else ""
    if told or measured.uses_data:
        return told
    files = [measured.reference] + [measured.samples] * (not measured.samples_have_labels)
    return foreign_images(name, "", " or ".join(files))


def says_of_data(config: GenerationConfig, reference: Reference) -> str:
    """What to say where the run's own samples are compared with other data than the generator was trained on; else empty."""
    trained_on = about_generator(config).get("images")
    of_run = config.evaluate.uses_data and config.evaluate.samples_have_labels
    if not of_run or trained_on in (None, reference.identity["images"]):
        return ""
    return (
        f"the reference is of {reference.identity['count']} other images than the generator was trained on: the data. options of its training "
        "(data.source, data.path, data.subset and so on) name these"
    )


def unlike_names(names: Sequence[str], reference: Sequence[str], whose: str) -> str:
    """A sentence where classes are called otherwise in the reference, or stand there in another order; else empty."""
    if not names or not reference or list(names) == list(reference):
        return ""
    if sorted(names) != sorted(reference):
        return f"the reference's classes have other names than the {whose}'s: their shares are not compared"
    here, there = next((one, other) for one, other in zip(names, reference) if one != other)
    return (
        f"the reference's classes have the {whose}'s names in another order (class {list(names).index(here)} is {here} here and {there} "
        "there): they are compared by name"
    )


def names_of_samples(config: GenerationConfig, samples: Samples) -> list[str]:
    """Of the samples' classes, by their number; none where these are not known."""
    if config.evaluate.samples_have_labels:
        return class_names(config)
    images = samples.images
    return list(images.class_names) if images is not None and images.num_classes > 1 else []


def result_file(config: GenerationConfig) -> Path:
    samples = config.evaluate.samples
    return config.folder / (
        "evaluation.json" if samples in ("", "generate") else f"evaluation_{place_name(samples)}.json"
    )


def protocol(
    config: GenerationConfig,
    extractor: Extractor,
    samples: Samples,
    reference: Reference,
    world: World = ONE_PROCESS,
) -> dict[str, Any]:
    """How the metrics come about: equal protocols mean equal metrics. A :class:`UserError` for samples that are not as they should be."""
    chosen, package = config.evaluate.chosen_metrics(), Path(flowprior.metrics.__file__).parent
    own_weights = {
        name: file_sha256(package / METRICS[name].weights.format(extractor=config.evaluate.extractor))
        for name in chosen
        if METRICS[name].weights
    }
    made = {
        "reference": reference.identity | {"classes": classes_text(reference.class_counts)},
        "extractor": extractor.protocol(),
        "metrics": list(chosen),
        "metric_weights": own_weights,
        "half_half_splits": config.evaluate.half_half_splits if config.evaluate.uses_data else 0,
        "dtype": "float32 features, float64 moments",
        "samples": samples_protocol(config, samples, world),
    }
    compared = reference.counts_by(names_of_samples(config, samples)) or ()
    for name, counts in samples.class_counts(len(reference.class_counts or ())).items():
        about = {"classes": classes_text(counts)}
        if len(compared) == len(counts):
            about["total variation to the reference's"] = round(total_variation(counts, compared), 4)
        made["samples"][name] |= about
    if "inception_score" in chosen:
        made["inception_score"] = split_protocol(config.sample.count, config.evaluate.inception_split)
    return made


def classes_text(counts: tuple[int, ...] | None) -> str:
    """What a protocol says of a set's classes."""
    if not counts:
        return "not stated"
    least, most = min(counts), max(counts)
    return f"{len(counts)}, of {least} images each" if least == most else f"{len(counts)}, of {least} to {most} images"


def class_names(config: GenerationConfig) -> list[str]:
    """Of the generator's classes, by their number; none where there is no generator."""
    return list(map(str, about_generator(config).get("class_names") or []))


def about_generator(config: GenerationConfig) -> dict[str, Any]:
    """What the run's generator remembers of its training; nothing where there is none."""
    file = config.folder / "generator" / "config.json"
    return (read_json(file, "generator").get("about") if file.is_file() else None) or {}


def evaluate(
    config: GenerationConfig,
    extractor: Extractor,
    samples: Samples,
    reference: Reference,
    world: World = ONE_PROCESS,
    several: SeveralExtractors | None = None,
    earlier: Earlier = NOTHING,
) -> dict[str, Any]:
    """Figures of every set of samples, the best of them by FID, and how far one half of the real images lies from the other.

    The ``earlier`` ones are taken as they are.

    A metric that cannot be had is null, and ``not_measured`` says why.
    """
    result: dict[str, Any] = {"metrics": {}}
    if several:
        result["fdr_baseline"] = several.baselines  # one that is none is found before a set is measured
    not_measured = dict(earlier.not_measured)
    for name, images in open_samples(config, extractor, samples, world).items():
        if name in earlier.metrics:
            continue
        metrics, missing = metrics_of(config, images, reference)
        result["metrics"][name] = metrics | (several.measure(images) if several else {})
        if missing:
            not_measured[name] = missing
    result["metrics"] = by_guidance(earlier.metrics | result["metrics"], config)
    if not_measured:
        result["not_measured"] = not_measured
    if config.evaluate.half_half_splits and config.evaluate.uses_data and isinstance(reference.images, ImageSet):
        splits = [half_half_fid(reference.images, seed) for seed in range(config.evaluate.half_half_splits)]
        result["half_half_fid"] = {"mean": float(np.mean(splits)), "std": float(np.std(splits)), "splits": splits}
    fids = {cfg: metrics.get("fid") for cfg, metrics in result["metrics"].items()}
    if config.evaluate.samples_have_labels and None not in fids.values():
        result["best_cfg"] = min(fids, key=fids.get)  # type: ignore[arg-type]
    return result


def metrics_of(
    config: GenerationConfig, images: ImageSet, reference: Reference
) -> tuple[dict[str, float | None], dict[str, str]]:
    """The metrics of one set of samples, None for those that cannot be had, and why these cannot."""
    chosen, missing = list(config.evaluate.chosen_metrics()), {}
    if "recognised" in chosen and images.labels is not None:
        digits = digits_of_classes(class_names(config))
        if digits is None:
            chosen.remove("recognised")
            missing["recognised"] = "the judge knows the digits 0 to 9, and the classes here are others"
        else:
            images.labels = digits[images.labels]
    options = {"inception_score": {"split_size": config.evaluate.inception_split}}
    metrics: dict[str, float | None] = {}
    if chosen:
        metrics |= evaluate_generation(images, reference.images, chosen, options)
    for name, value in metrics.items():
        if value is not None and not math.isfinite(value):
            missing[name] = f"its value is {value}"
    return metrics | dict.fromkeys(missing), missing


def digits_of_classes(names: list[str]) -> torch.Tensor | None:
    """Which digit each class is, int64 ``(classes,)``, by its name; None where some are no digits. Without names class n is digit n."""
    known = list(map(str, range(NUM_CLASSES)))
    names = names or known
    return torch.tensor([known.index(name) for name in names]) if set(names) <= set(known) else None
