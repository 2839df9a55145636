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

from flowprior.data.images import open_images
from flowprior.data.loader import ordered_batches
from flowprior.errors import UserError, entry_point
from flowprior.metrics import Features, Statistics, evaluate_generation, extract_features, half_half_fid, recognised_share
from flowprior.training.distributed import best_device
from flowprior.training.files import read_json, write_json
from mar.config import MARStageConfig, read_config
from mar.generate import samples_file

HALF_HALF_SEEDS = 10


@entry_point
def main() -> None:
    config = read_config(__doc__)
    file = Path(config.run_dir) / "mar" / "evaluation.json"
    sets = {f"{cfg:g}": read_json(samples_file(config, cfg).with_suffix(".json"), "set of samples (run `python -m mar.generate`)") for cfg in config.sample.cfg}
    protocol = {"reference": config.evaluate.reference, "extractor": config.evaluate.extractor, "dtype": "float32 features, float64 moments",
                "samples": {cfg: entry["protocol"] for cfg, entry in sets.items()}}
    if file.is_file() and read_json(file, "evaluation").get("protocol") == protocol:
        print(f"evaluation of the generator: complete ({file})")
    else:
        write_json(file, evaluate(config) | {"protocol": protocol})
    result = read_json(file, "evaluation")
    for cfg, figures in result["metrics"].items():
        print(f"generator, cfg {cfg}: " + "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))
    if "half_half_fid" in result:
        print(f"FID of one half of the real images against the other, mean of {HALF_HALF_SEEDS} splits: {result['half_half_fid']['mean']:.3f}")


def evaluate(config: MARStageConfig) -> dict[str, Any]:
    """Figures per guidance scale, the best of them by FID, and what the extractor makes of real images."""
    extractor, device = config.evaluate.extractor, best_device()
    options = {"device": device, "weights_path": config.evaluate.weights or None}
    result: dict[str, Any] = {"metrics": {}}
    reference: Features | Statistics
    if config.evaluate.reference == "data":
        batches = (batch["image"] for batch in ordered_batches(open_images(config.data), 256))
        reference = extract_features(batches, extractor, progress=True, **options)
        splits = [half_half_fid(reference, seed) for seed in range(HALF_HALF_SEEDS)]
        result["half_half_fid"] = {"mean": float(np.mean(splits)), "std": float(np.std(splits)), "splits": splits}
    else:
        reference = Statistics.load(config.evaluate.reference)
    for cfg in config.sample.cfg:
        images, labels = read_samples(config, cfg)
        figures = evaluate_generation(extract_features(images.split(256), extractor, progress=True, **options), reference)
        if config.data.source == "digits":
            figures["recognised"] = recognised_share(images, labels)
        result["metrics"][f"{cfg:g}"] = figures
    result["best_cfg"] = min(result["metrics"], key=lambda cfg: result["metrics"][cfg]["fid"])
    return result


def read_samples(config: MARStageConfig, cfg: float) -> tuple[Tensor, Tensor]:
    """Images uint8 ``(N, 3, H, W)`` and labels ``(N,)`` of one set; a :class:`UserError` unless it is whole and of this config's count."""
    file = samples_file(config, cfg)
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2), torch.from_numpy(arrays["labels"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"the samples {file} cannot be read ({error}): delete the file and run `python -m mar.generate`") from error
    if len(images) != config.sample.count or len(labels) != len(images):
        raise UserError(f"{file} holds {len(images)} images and sample.count is {config.sample.count}: run `python -m mar.generate` again")
    return images, labels


if __name__ == "__main__":
    main()
