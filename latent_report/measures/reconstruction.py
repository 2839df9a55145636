"""How well the decoder rebuilds images, from their latents and from what a generator may give in their place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowprior.data.images import to_uint8
from flowprior.metrics.fid import frechet_distance
from flowprior.metrics.reconstruction import psnr_per_image, ssim_per_image
from flowprior.metrics.statistics import Statistics, StreamingMoments
from flowprior.training.randomness import stream_seed
from tokenizer.reconstruct import BATCH

Decode = Callable[[Tensor], Tensor]


@torch.no_grad()
def decoded(decode: Decode, latents: Tensor, batch: int = BATCH) -> Tensor:
    """Raw latents ``(N, T, C)`` as uint8 images ``(N, 3, H, H)``."""
    return torch.cat([to_uint8(decode(part)).cpu() for part in latents.split(batch)])


def noisy(latents: Tensor, share: float) -> Tensor:
    """Latents with noise of ``share`` of each channel's deviation: one noise for all shares, and as ``tokenizer.evaluate`` draws it."""
    std = latents.double().flatten(0, 1).std(0, correction=0).float()
    generator = torch.Generator().manual_seed(stream_seed("noise on the latents"))
    noise = torch.cat([torch.randn(part.shape, generator=generator) for part in latents.split(BATCH)])
    return latents + share * std * noise


def psnr_and_ssim(original: Tensor, reconstructed: Tensor) -> Tensor:
    """PSNR in dB and SSIM of each pair of uint8 images, ``(N, 2)``."""
    parts = zip(original.split(BATCH), reconstructed.split(BATCH))
    return torch.cat([torch.stack([psnr_per_image(*pair), ssim_per_image(*pair)], dim=1) for pair in parts]).double()


def feature_distance(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of features ``(N, d)`` and ``(M, d)``."""
    return frechet_distance(*(_moments(part) for part in (one, other)))


def feature_distance_of_few(one: Tensor, other: Tensor) -> float:
    """The same for fewer images than the features are wide, where a root of covariances takes long.

    With centred features ``A`` and ``B`` in rows, ``tr (S_1 S_2)^(1/2)`` is the sum of the singular values of
    ``A B^T / ((N - 1) (M - 1))^(1/2)``, a matrix of ``(N, M)``.
    """
    a, b = (part.double() - part.double().mean(0) for part in (one, other))
    shift = (one.double().mean(0) - other.double().mean(0)).square().sum()
    traces = a.square().sum() / (len(a) - 1) + b.square().sum() / (len(b) - 1)
    roots = torch.linalg.svdvals(a @ b.T).sum() / ((len(a) - 1) * (len(b) - 1)) ** 0.5
    return (shift + traces - 2 * roots).item()


def _moments(features: Tensor) -> Statistics:
    moments = StreamingMoments()
    moments.update(features)
    return moments.statistics()
