"""Measure a trained autoencoder: PSNR, SSIM and rFID over all images of the data.

    python -m tokenizer.evaluate [--preset digits] [option=value ...]

Writes ``<run_dir>/ae/evaluation.json`` with the figures and their protocol.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from flowprior.data.images import ImageSource, open_images, to_model, to_uint8
from flowprior.data.loader import ordered_batches
from flowprior.errors import UserError, entry_point
from flowprior.metrics import ReconstructionMeter, evaluate_generation, extract_features
from flowprior.training.config import config_from_command_line
from flowprior.training.distributed import best_device
from flowprior.training.files import read_json, write_json
from tokenizer.autoencoder import Autoencoder
from tokenizer.train_ae import PRESETS, AEConfig


@entry_point
def main() -> None:
    config = config_from_command_line(AEConfig, PRESETS, __doc__)
    folder = Path(config.run_dir) / "ae"
    if not (folder / "autoencoder" / "config.json").is_file():
        raise UserError(f"there is no autoencoder at {folder / 'autoencoder'}: run `bash scripts/train_ae.sh` first")
    autoencoder = Autoencoder.load(folder / "autoencoder")
    images = open_images(config.data)
    protocol = {"autoencoder": autoencoder.fingerprint, "images": images.fingerprint(), "count": len(images), "size": config.data.size,
                "crop": "centre", "extractor": config.monitor.extractor or None, "weights": "averaged", "dtype": "float32"}
    file = folder / "evaluation.json"
    if file.is_file() and read_json(file, "evaluation").get("protocol") == protocol:
        print(f"evaluation of the autoencoder: complete ({file})")
    else:
        write_json(file, {"metrics": measure(autoencoder, images, config.monitor.extractor), "protocol": protocol})
    metrics = read_json(file, "evaluation")["metrics"]
    print("autoencoder: " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


@torch.no_grad()
def measure(autoencoder: Autoencoder, images: ImageSource, extractor: str) -> dict[str, Any]:
    """PSNR, SSIM over all images, and rFID by ``extractor`` where one is named."""
    device = best_device()
    autoencoder = autoencoder.to(device)
    meter, originals, reconstructions = ReconstructionMeter(), [], []
    for batch in tqdm(ordered_batches(images, 128), total=-(-len(images) // 128), desc="reconstruct", unit="batch", dynamic_ncols=True):
        reconstruction = to_uint8(autoencoder.decode(autoencoder.encode(to_model(batch["image"].to(device))))).cpu()
        meter.update(batch["image"], reconstruction)
        if extractor:
            originals.append(batch["image"])
            reconstructions.append(reconstruction)
    figures = {name: float(value) for name, value in meter.compute().items() if name != "count"}
    if extractor:
        reference = extract_features(originals, extractor, device=device)
        figures["rfid"] = evaluate_generation(extract_features(reconstructions, extractor, device=device), reference, ["fid"])["fid"]
    return figures


if __name__ == "__main__":
    main()
