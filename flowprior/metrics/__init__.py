"""Measuring: extractors, FID, inception score, precision and recall, PSNR and SSIM, kNN density, digit networks.

The names below load their module, and with it torch-fidelity, torchmetrics or Faiss, when they are first used.
"""

from __future__ import annotations

from typing import Any

from flowprior.metrics.optional import library

_HOMES = {
    "digit_networks": ("judge_confidence", "load_extractor", "load_judge", "recognised_share"),
    "extractors": ("Extractor", "missing_weights"),
    "features": ("Features",),
    "fid": ("frechet_distance", "half_half_fid", "note_few"),
    "generation": ("evaluate_generation",),
    "image_set": ("ImageSet",),
    "knn": ("KNNDensity",),
    "registry": ("EXTRACTORS", "METRICS", "check_extractor", "choose_metrics"),
    "reconstruction": ("ReconstructionMeter", "psnr", "ssim"),
    "statistics": ("Statistics", "StreamingMoments"),
}

__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(library(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
