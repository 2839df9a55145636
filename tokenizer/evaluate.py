"""Measure a trained autoencoder: PSNR, SSIM and rFID over all images of the data.

    python -m tokenizer.evaluate [--preset digits] [option=value ...]

Writes ``<run_dir>/ae/evaluation.json`` with the figures and their protocol.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm.auto import tqdm

from flowprior.data.images import ImageSource, open_images, to_model, to_uint8
from flowprior.data.loader import ordered_batches
from flowprior.errors import UserError, entry_point
from flowprior.metrics import Extractor, ReconstructionMeter, StreamingMoments, frechet_distance
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
    name, weights = config.evaluate.extractor, config.evaluate.weights or None
    extractor = Extractor(name, device=best_device(), weights_path=weights) if name else None
    protocol = {
        "autoencoder": autoencoder.fingerprint,
        "images": images.fingerprint(),
        "count": len(images),
        "size": config.data.size,
        "crop": "centre",
        "extractor": {"name": extractor.name, "weights": extractor.fingerprint} if extractor else None,
        "weights": "averaged",
        "dtype": "float32, float64 moments",
    }
    file = folder / "evaluation.json"
    if file.is_file() and read_json(file, "evaluation").get("protocol") == protocol:
        print(f"evaluation of the autoencoder: complete ({file})")
    else:
        write_json(file, {"metrics": measure(autoencoder, images, extractor), "protocol": protocol})
    metrics = read_json(file, "evaluation")["metrics"]
    print("autoencoder: " + "  ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


@torch.no_grad()
def measure(autoencoder: Autoencoder, images: ImageSource, extractor: Extractor | None) -> dict[str, float]:
    """PSNR in dB and SSIM over all images, and rFID where there is an extractor; images and features are not kept."""
    device = best_device()
    autoencoder = autoencoder.to(device)
    meter, real, decoded = ReconstructionMeter(), StreamingMoments(), StreamingMoments()
    for batch in tqdm(
        ordered_batches(images, 128), total=-(-len(images) // 128), desc="reconstruct", unit="batch", dynamic_ncols=True
    ):
        reconstruction = to_uint8(autoencoder.decode(autoencoder.encode(to_model(batch["image"].to(device))))).cpu()
        meter.update(batch["image"], reconstruction)
        if extractor:
            real.update(extractor(batch["image"]).fid)
            decoded.update(extractor(reconstruction).fid)
    figures = {name: float(value) for name, value in meter.compute().items() if name != "count"}
    if extractor:
        figures["rfid"] = frechet_distance(decoded.statistics(extractor.name), real.statistics(extractor.name))
    return figures


if __name__ == "__main__":
    main()
