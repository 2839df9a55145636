"""What the page does, without the page: numbers and images in, images out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from demo.trained_run import NOISE, TrainedGenerator, TrainedRun
from flowprior.data.crops import centre_crop
from flowprior.data.image_reader import read_image
from flowprior.data.images import to_model
from flowprior.errors import UserError
from flowprior.metrics.reconstruction import psnr_per_image
from flowprior.training.randomness import stream_seed
from generation.autoencoder import decode_to_uint8
from tokenizer.prior.picture import draw_prior

MOST_IMAGES = 256


class Timed(NamedTuple):
    """Images uint8 ``(N, 3, H, H)``, and the seconds that they took."""

    images: Tensor
    seconds: float


def generate(generator: TrainedGenerator, classes: list[int], per_class: int, cfg: float, seed: int) -> Timed:
    """``per_class`` images of every class, a class after the other.

    The images are those that ``python -m <generator> generate --classes ... --cfg ... sample.seed=...`` draws.

    Args:
        generator: of the run.
        classes: by number; all where there is none.
        per_class: how many of each.
        cfg: guidance scale.
        seed: of the samples.

    Raises:
        UserError: more than ``MOST_IMAGES`` images, or none, a class that there is not, or a guidance that is no scale.
    """
    known = range(len(generator.class_names))
    if unknown := [number for number in classes if number not in known]:
        raise UserError(f"there is no class {unknown[0]}: they are 0 to {known[-1]}")
    numbers = classes or list(known)
    count = len(numbers) * per_class
    if not 0 < count <= MOST_IMAGES:
        raise UserError(f"{count} images are asked for: 1 to {MOST_IMAGES} are drawn at a time")
    if not 0 <= cfg < float("inf"):
        raise UserError(f"guidance is 0 or more, not {cfg}")
    drawer = replace(generator.drawer, config=replace(generator.drawer.config, seed=seed))
    labels = torch.tensor(numbers).repeat_interleave(per_class)
    start = time.perf_counter()
    return Timed(drawer.draw(range(count), labels, cfg), time.perf_counter() - start)


def read_as_cropped(run: TrainedRun, file: str | Path | None) -> Tensor:
    """An image file as the autoencoder takes it: uint8 ``(1, 3, H, H)``, its centre.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    if file is None:
        raise UserError("choose an image first")
    try:
        image = read_image(Path(file))
    except UserError as error:  # which names the copy that the page keeps
        raise UserError(str(error).replace(str(file), Path(file).name)) from error
    image = centre_crop(image, run.autoencoder.config.image_size)
    return TF.pil_to_tensor(image).unsqueeze(0)


def encode(run: TrainedRun, images: Tensor) -> Tensor:
    """Latents ``(N, T, C)`` of uint8 images ``(N, 3, H, H)``."""
    with torch.no_grad():
        return run.autoencoder.encode(to_model(images.to(next(run.autoencoder.parameters()).device)))


class Rebuilt(NamedTuple):
    """An image, rebuilt from its latents, and from its latents with noise: uint8 ``(3, 3, H, H)``; and the latter two's PSNR in dB."""

    images: Tensor
    psnr: list[float]


def rebuild(run: TrainedRun, image: Tensor, noise: float, seed: int) -> Rebuilt:
    """Encode and decode ``image``, uint8 ``(1, 3, H, H)``.

    Args:
        run: whose autoencoder does it.
        image: as it is cropped.
        noise: its standard deviation, as a share of that of every token's every channel over images.
        seed: of the noise.

    Raises:
        UserError: noise is asked for, and nothing is known of the latents' deviation.
    """
    latents = encode(run, image)
    noisy = latents
    if noise:
        if run.deviation is None:
            raise UserError(
                f"the deviation that noise is a share of is not known ({run.left_out[NOISE]}): set noise to 0"
            )
        random = torch.Generator().manual_seed(stream_seed(seed, "noise on latents"))
        draw = torch.randn(latents.shape, generator=random).to(latents.device)
        noisy = latents + noise * run.deviation * draw
    found = decode_to_uint8(run.autoencoder, torch.cat([latents, noisy]))
    return Rebuilt(torch.cat([image, found]), psnr_per_image(image.expand_as(found), found).tolist())


def walk(run: TrainedRun, images: Tensor, steps: int) -> Tensor:
    """From one image to another on a straight line through the latents, and above it the same line through the pixels.

    Args:
        run: whose autoencoder decodes.
        images: both ends, uint8 ``(2, 3, H, H)``.
        steps: images on the line, 2 or more.

    Returns:
        uint8 ``(2 steps, 3, H, H)``: first the pixels' line, then the latents'.
    """
    at = torch.linspace(0, 1, steps)
    latents = encode(run, images)
    between = torch.lerp(latents[:1], latents[1:], at.view(-1, 1, 1).to(latents.device))  # (steps, T, C)
    pixels = torch.lerp(images[:1].float(), images[1:].float(), at.view(-1, 1, 1, 1)).round().to(torch.uint8)
    return torch.cat([pixels, decode_to_uint8(run.autoencoder, between)])


def prior_picture(run: TrainedRun, count: int, steps: int, seed: int, file: Path) -> float:
    """Draw ``count`` samples of the flow prior in ``steps`` Heun steps beside the target's features into ``file``; returns seconds."""
    prior, features = run.prior
    device = next(prior.velocity.parameters()).device
    start = time.perf_counter()
    with torch.no_grad():
        random = torch.Generator(device).manual_seed(stream_seed(seed, "prior samples"))
        samples = prior.sample(count, steps=steps, generator=random).cpu()
    seconds = time.perf_counter() - start
    draw_prior(features, samples, "target features", f"{count} samples of the flow prior in {steps} Heun steps", file)
    return seconds
