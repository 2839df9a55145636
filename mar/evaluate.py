"""Measure the sampled images: FID, inception score, precision and recall, and for the digits the share that is recognised.

    python -m mar.evaluate [--preset digits] [option=value ...]

Reads what ``mar.generate`` wrote; writes ``<run_dir>/mar/evaluation.json`` with the figures and their protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flowprior.metrics
from flowprior.data.images import open_images
from flowprior.errors import UserError, entry_point
from flowprior.metrics import METRICS, Extractor, ImageSet, Statistics, evaluate_generation, half_half_fid
from flowprior.training.distributed import best_device
from flowprior.training.files import file_sha256, read_json, write_json
from mar.config import MARStageConfig, read_config
from mar.generate import samples_file


@entry_point
def main() -> None:
    config = read_config(__doc__)
    file = Path(config.run_dir) / "mar" / "evaluation.json"
    extractor = Extractor(config.evaluate.extractor, device=best_device(), weights_path=config.evaluate.weights or None)
    reference, identity = open_reference(config, extractor)
    made_by = protocol(config, extractor, identity)
    if file.is_file() and read_json(file, "evaluation").get("protocol") == made_by:
        print(f"evaluation of the generator: complete ({file})")
    else:
        write_json(file, evaluate(config, extractor, reference) | {"protocol": made_by})
    result = read_json(file, "evaluation")
    for cfg, figures in result["metrics"].items():
        print(f"generator, cfg {cfg}: " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    if "half_half_fid" in result:
        splits = result["half_half_fid"]
        print(
            f"FID of one half of the real images against the other, mean of {len(splits['splits'])} splits: {splits['mean']:.3f}"
        )


def open_reference(config: MARStageConfig, extractor: Extractor) -> tuple[ImageSet | Statistics, dict[str, Any]]:
    """What the samples are compared with, and which images or which file that is."""
    if config.evaluate.uses_data:
        images = open_images(config.data)
        identity = {"images": images.fingerprint(), "count": len(images), "size": config.data.size, "crop": "centre"}
        return ImageSet.of_source(images, extractor, progress=True), identity
    file = Path(config.evaluate.reference)
    statistics = Statistics.load(file)
    return statistics, {"statistics": file.name, "count": statistics.count, "sha256": file_sha256(file)}


def protocol(config: MARStageConfig, extractor: Extractor, reference: dict[str, Any]) -> dict[str, Any]:
    """How the figures come about: equal protocols mean equal figures."""
    chosen, package = config.evaluate.chosen_metrics(), Path(flowprior.metrics.__file__).parent
    own_weights = {name: file_sha256(package / METRICS[name].weights) for name in chosen if METRICS[name].weights}
    notes = {cfg: samples_file(config, cfg).with_suffix(".json") for cfg in config.sample.cfg}
    return {
        "reference": reference,
        "extractor": {"name": extractor.name, "weights": extractor.fingerprint},
        "metrics": list(chosen),
        "metric_weights": own_weights,
        "half_half_splits": config.evaluate.half_half_splits if config.evaluate.uses_data else 0,
        "dtype": "float32 features, float64 moments",
        "samples": {
            f"{cfg:g}": read_json(note, "set of samples (run `python -m mar.generate`)")["protocol"]
            for cfg, note in notes.items()
        },
    }


def evaluate(config: MARStageConfig, extractor: Extractor, reference: ImageSet | Statistics) -> dict[str, Any]:
    """Figures per guidance scale, the best of them by FID, and how far one half of the real images lies from the other."""
    result: dict[str, Any] = {"metrics": {}}
    for cfg in config.sample.cfg:
        images, labels = read_samples(config, cfg)
        generated = ImageSet(images, extractor, labels, progress=True)
        result["metrics"][f"{cfg:g}"] = evaluate_generation(generated, reference, config.evaluate.chosen_metrics())
    if config.evaluate.half_half_splits and isinstance(reference, ImageSet):
        splits = [half_half_fid(reference, seed) for seed in range(config.evaluate.half_half_splits)]
        result["half_half_fid"] = {"mean": float(np.mean(splits)), "std": float(np.std(splits)), "splits": splits}
    if all("fid" in figures for figures in result["metrics"].values()):
        result["best_cfg"] = min(result["metrics"], key=lambda cfg: result["metrics"][cfg]["fid"])
    return result


def read_samples(config: MARStageConfig, cfg: float) -> tuple[Tensor, Tensor]:
    """Images uint8 ``(N, 3, H, W)`` and labels ``(N,)`` of one set; a :class:`UserError` unless it is whole and of this config's count."""
    file = samples_file(config, cfg)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2), torch.from_numpy(arrays["labels"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"the samples {file} cannot be read ({error}): delete the file and run `python -m mar.generate`"
        ) from error
    if len(images) != config.sample.count or len(labels) != len(images):
        raise UserError(
            f"{file} holds {len(images)} images and sample.count is {config.sample.count}: run `python -m mar.generate` again"
        )
    return images, labels


if __name__ == "__main__":
    main()
