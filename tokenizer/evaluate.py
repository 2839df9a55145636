"""Measure a trained autoencoder: PSNR, SSIM, rFID and LPIPS, with noise on the latents as well.

    python -m tokenizer.evaluate [--preset digits] [option=value ...]

The images are ``held_out=<folder>``, ImageNet's 50,000 for validation say, or else the training images, which a note says, cropped
centrally at the size of training.
Writes ``<run_dir>/ae/evaluation.json`` with the metrics and their protocol.
"""

from __future__ import annotations

import math
from pathlib import Path

from flowprior.data.images import open_images
from flowprior.distributed import World, best_device
from flowprior.errors import UserError, entry_point
from flowprior.notes import note
from flowprior.rounding import rounded
from flowprior.run.files import read_json
from flowprior.run.lock import sole_writer
from flowprior.run.presets import config_from_command_line
from flowprior.run.provenance import Provenance
from tokenizer.autoencoder import Autoencoder
from tokenizer.config import PRESETS, AEConfig, find_ae_preset
from tokenizer.metrics import Meter, build_meters
from tokenizer.reconstruct import measure, measure_with_noise


@entry_point
def main() -> None:
    run_evaluation(AEConfig, PRESETS, __doc__)


def run_evaluation(config_class: type[AEConfig], presets: Path, description: str, default: str = "digits") -> None:
    """What the command does; arguments as for :func:`tokenizer.train_ae.run_stage`."""
    config = config_from_command_line(config_class, presets, description, find=find_ae_preset, default=default)
    if config.dry_run:
        return
    folder = Path(config.run_dir) / "ae"
    if not (folder / "autoencoder" / "config.json").is_file():
        raise UserError(f"there is no autoencoder at {folder / 'autoencoder'}: run `bash scripts/train_ae.sh` first")
    autoencoder = Autoencoder.load(folder / "autoencoder")
    check_crop(config, autoencoder)
    with sole_writer(folder, World(), may_be_read_only=(folder / "evaluation.json").is_file()):
        evaluate(config, folder, autoencoder)


def evaluate(config: AEConfig, folder: Path, autoencoder: Autoencoder) -> None:
    """Write and say the metrics, unless just these are there."""
    images = open_images(config.held_out_data())
    if reasons := config.says_of_extractor():
        note(reasons)
    trained_here = "imported" not in autoencoder.about
    if trained_here and (reasons := config.says_of_held_out(images)):
        note(reasons)
    if trained_here and not config.holds_out:
        others = "data.subset=train keeps" if config.data.has_subsets else "held_out=<other images> names"
        note(f"measured on the {len(images)} training images: {others} others")

    def new_meters() -> list[Meter]:
        return build_meters(chosen_metrics(config), config.meter_context(len(images), best_device()))

    meters, shares = new_meters(), config.evaluate.latent_noise_shares
    protocol = {
        "autoencoder": autoencoder.fingerprint,
        "images": images.fingerprint(),
        "held_out": config.holds_out if trained_here else None,  # whoever trained it elsewhere may have had these
        "count": len(images),
        "size": config.data.size,
        "crop": "centre",
        "weights": "averaged",
        "dtype": "float32, float64 moments",
        "metrics": chosen_metrics(config),
        "extractor": None,
    }
    for meter in meters:
        protocol |= meter.protocol()
    if shares:
        protocol["noise on the latents, in each channel's standard deviation"] = list(shares)
    file = folder / "evaluation.json"
    evaluation = Provenance(file, "evaluation", "protocol")
    if not evaluation.differing(protocol, World()):
        print(f"evaluation of the autoencoder: complete ({file})")
    else:
        metrics = measure(autoencoder, images, meters, config.train.loader_workers)
        if shares:
            sets = {share: new_meters() for share in shares}
            metrics |= measure_with_noise(autoencoder, images, sets, config.train.loader_workers)
        missing = {name: reason_of(name, value) for name, value in metrics.items() if not math.isfinite(value)}
        reasons = {"not_measured": missing} if missing else {}
        evaluation.write(protocol, metrics=metrics | dict.fromkeys(missing), **reasons)
    kept = read_json(file, "evaluation")
    finite = {name: value for name, value in kept["metrics"].items() if value is not None}
    print("autoencoder: " + "  ".join(f"{name} {rounded(value)}" for name, value in finite.items()))
    for name, reason in kept.get("not_measured", {}).items():
        note(f"no {name}: {reason}")


def reason_of(name: str, value: float) -> str:
    """Why a figure is no number."""
    if name.startswith("psnr") and value > 0:
        return "some image is reconstructed exactly, whose PSNR is infinite"
    return "fewer than two images" if name.startswith("rfid") and math.isnan(value) else f"its value is {value}"


def chosen_metrics(config: AEConfig) -> list[str]:
    """Those that the config names, or every one that can be expected to have its weights."""
    if config.evaluate.metrics:
        return list(config.evaluate.metrics)
    return ["fidelity", *["rfid"] * bool(config.evaluate.extractor), *["lpips"] * bool(config.loss.perceptual_weight)]


def check_crop(config: AEConfig, autoencoder: Autoencoder) -> None:
    """A :class:`UserError` when the images would be shown at another size or crop than in training."""
    kept = autoencoder.about.get("data", {})
    for name, asked in (("size", config.data.size), ("crop", config.data.crop)):
        if name in kept and kept[name] != asked:
            raise UserError(
                f"the autoencoder was trained at data.{name}={kept[name]}, not {asked}: measure it with the options that it was trained with"
            )


if __name__ == "__main__":
    main()
