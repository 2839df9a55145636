"""How close reconstructions are to their originals: PSNR and SSIM, through torchmetrics."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from flowprior.precision import full_float32, full_precision


def psnr(x: Tensor, y: Tensor) -> float:
    """Mean over images of each image's peak signal-to-noise ratio, in dB; infinite as soon as one pair is identical.

    Args:
        x, y: ``(B, 3, H, W)``, uint8 in [0, 255] or floating point in [0, 1], each on its own; the data range is 1 after scaling.
    """
    return psnr_per_image(x, y).double().mean().item()


def ssim(x: Tensor, y: Tensor) -> float:
    """Mean over images of the structural similarity, in [-1, 1] (Gaussian window, sigma 1.5); arguments as for :func:`psnr`."""
    return ssim_per_image(x, y).double().mean().item()


def psnr_per_image(x: Tensor, y: Tensor) -> Tensor:
    """PSNR in dB of each pair, ``(B,)``; arguments as for :func:`psnr`."""
    x, y = _unit_pair(x, y)
    # The mean of the images' PSNR is not the PSNR of the mean error, which torchmetrics gives without `dim`.
    return peak_signal_noise_ratio(y, x, data_range=1.0, reduction="none", dim=(1, 2, 3))  # (B,)


def ssim_per_image(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of each pair, ``(B,)``; arguments as for :func:`psnr`."""
    x, y = _unit_pair(x, y)
    # Variances are differences of mean squares, which the ten bits of TF32 or bf16's seven do not hold where images are smooth.
    with full_precision(x.device), full_float32():
        return structural_similarity_index_measure(y, x, data_range=1.0, reduction="none").reshape(len(x))  # (B,)


class ReconstructionMeter:
    """Means of PSNR and SSIM over the images of many batches."""

    def __init__(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)  # PSNR, SSIM, images

    def update(self, original: Tensor, reconstructed: Tensor) -> None:
        """Add a batch of pairs, both uint8 ``(B, 3, H, W)``."""
        if original.dtype != torch.uint8 or reconstructed.dtype != torch.uint8:
            raise ValueError(
                f"expected uint8 images, as they would be saved, got {original.dtype} and {reconstructed.dtype}"
            )
        if len(original) == 0:
            return
        # (2, B)
        values = torch.stack([psnr_per_image(original, reconstructed), ssim_per_image(original, reconstructed)])
        self._sums[:2] += values.double().sum(dim=1).cpu()
        self._sums[2] += len(original)

    def compute(self) -> dict[str, float]:
        """``psnr`` in dB, ``ssim`` in [-1, 1] and ``count``, the number of images; NaN before the first one."""
        psnr_sum, ssim_sum, count = self._sums.tolist()
        if count == 0:
            return {"psnr": float("nan"), "ssim": float("nan"), "count": 0}
        return {"psnr": psnr_sum / count, "ssim": ssim_sum / count, "count": int(count)}


def _unit_pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            f"expected two batches of images (B, C, H, W) of one shape, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    return _unit(x), _unit(y)


def _unit(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images.float() / 255.0
    if not images.dtype.is_floating_point:
        raise ValueError(f"expected uint8 or floating point images, got {images.dtype}")
    if images.numel() and not (images.min() >= 0 and images.max() <= 1):
        raise ValueError("floating point images must lie in [0, 1]; map [-1, 1] with ((x + 1) / 2).clamp(0, 1)")
    return images.float()
