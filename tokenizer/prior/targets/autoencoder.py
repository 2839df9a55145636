"""The low-level target: latents of a trained autoencoder, of this project, of diffusers, or a custom one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from flowprior.data.images import ImageConfig, open_images, to_model
from flowprior.errors import UserError
from flowprior.run.config import option
from flowprior.run.files import read_json
from tokenizer.diffusers_kl import is_diffusers, weights_fingerprint
from tokenizer.prior.targets.base import TargetContext, TargetFeatures
from tokenizer.prior.targets.extraction import Encode, ExtractionOptions, extracted_features
from tokenizer.python_file import PythonAutoencoder, is_python_file


@dataclass
class AutoencoderTarget(ExtractionOptions):
    """source=autoencoder: latent tokens of the images of the data section; of a KL autoencoder, the posterior's means."""

    path: str = option(
        "",
        "folder of a trained autoencoder, <run_dir>/ae/autoencoder, or of a diffusers AutoencoderKL, or a Python file with one of your own; the "
        "latter two see images of data.size",
        changes_result=False,
    )

    def load(self, context: TargetContext) -> TargetFeatures:
        if not self.path:
            raise UserError(
                "target.source=autoencoder needs target.autoencoder.path=<run_dir>/ae/autoencoder: train one with "
                "`bash scripts/train_ae.sh regulariser.name=kl run_dir=<another folder>`"
            )
        return autoencoder_latents(Path(self.path), self, context)


def autoencoder_latents(
    place: Path, options: ExtractionOptions, context: TargetContext, data: ImageConfig | None = None
) -> TargetFeatures:
    """Latent tokens ``(N, channels)`` of the images that ``data`` (by default the context's) names, at the autoencoder's own size, if it has one.

    Raises:
        UserError: it is not an autoencoder, or is damaged.
    """
    data = data or context.data
    size, fingerprint = _side_and_fingerprint(place, data.size)
    images = open_images(replace(data, size=size))

    def make_encoder() -> Encode:
        from tokenizer.opening import load_tokenizer

        model = load_tokenizer(place, size).to(context.world.device)
        return _encoder(model.encode)

    name = f"latents of the autoencoder {fingerprint}"
    return extracted_features(context, name, f"autoencoder {fingerprint}", images, options, make_encoder)


def _side_and_fingerprint(place: Path, size: int) -> tuple[int, str]:
    """The side of the images that an autoencoder sees where those of the data have ``size`` pixels, and what tells it from others."""
    if is_python_file(place):
        return size, f"{PythonAutoencoder.load(place).fingerprint} at {size}"
    about = read_json(place / "config.json", "autoencoder")
    if is_diffusers(about):
        return size, f"{weights_fingerprint(place)} at {size}"
    try:
        return int(about["sizes"]["image_size"]), str(about["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{place / 'config.json'} is not an autoencoder's config") from error


def _encoder(encode: Callable[[Tensor], Tensor]) -> Encode:
    return lambda images: encode(to_model(images))  # (B, 3, H, H) -> (B, T, C)
