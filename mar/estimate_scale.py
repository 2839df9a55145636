"""Measure the cached latents and store their scale, 1 / std, in the cache's manifest: training and decoding read it there.

python -m mar.estimate_scale [--preset digits] [option=value ...]
"""

from __future__ import annotations

from flowprior.data.latent_cache import LatentCache, measure_statistics, store_statistics
from flowprior.errors import entry_point
from mar.config import read_config


@entry_point
def main() -> None:
    config = read_config(__doc__)
    cache = LatentCache(config.cache_folder, verify=False)
    statistics = cache.manifest.get("statistics")
    if statistics is None or statistics["images"] != min(config.cache.scale_samples, len(cache)):
        statistics = measure_statistics(cache, config.cache.scale_samples)
        store_statistics(config.cache_folder, statistics)
    spread = " ".join(f"{value:.3f}" for value in statistics["channel_std"])
    print(
        "scale: {scale:.4f} = 1 / std of {images} images (min {min:.3f}, max {max:.3f}, mean {mean:.3f}, std {std:.4f}); ".format(
            **statistics
        )
        + f"std per channel: {spread}"
    )


if __name__ == "__main__":
    main()
