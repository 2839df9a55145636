"""Encode every image once, so that the generator trains on latents alone.

    python -m mar.cache_latents [--preset digits] [option=value ...]

Writes ``<run_dir>/latents``.
"""

from __future__ import annotations

from flowprior.data.images import open_images
from flowprior.data.latent_cache import write_latent_cache
from flowprior.errors import UserError, entry_point
from flowprior.training.distributed import distributed_workers
from flowprior.training.files import read_json
from flowprior.training.run_folder import Stopwatch
from mar.config import read_config
from mar.tokenizer import load_autoencoder


@entry_point
def main() -> None:
    config = read_config(__doc__)
    with distributed_workers() as workers:
        autoencoder = load_autoencoder(config, workers.device)
        images = open_images(config.data)
        origin = {
            "autoencoder": autoencoder.fingerprint,
            "images": images.fingerprint(),
            "size": config.data.size,
            "flips": config.cache.flips,
            "dtype": config.cache.dtype,
        }
        manifest = config.cache_folder / "manifest.json"
        if manifest.is_file():
            kept = read_json(manifest, "latent cache").get("origin") or {}
            if kept != origin:
                differing = ", ".join(sorted(name for name in origin if kept.get(name) != origin[name]))
                raise UserError(
                    f"the latent cache {config.cache_folder} was made from another {differing}: delete the folder, or write run_dir=<another>"
                )
            if workers.is_main:
                print(f"latents: complete ({config.cache_folder})")
            return
        stopwatch = Stopwatch(config.cache_folder)
        write_latent_cache(config.cache_folder, images, autoencoder.encode, config.cache, origin, workers)
        if workers.is_main:
            stopwatch.save()
            print(f"latents: {len(images)} images in {config.cache_folder} ({stopwatch.seconds():.0f} s)")


if __name__ == "__main__":
    main()
