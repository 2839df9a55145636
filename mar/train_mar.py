"""Stage 3: train the generator on cached latents.

    python -m mar.train_mar [--preset digits] [option=value ...]

Writes ``<run_dir>/mar``: ``generator/`` (the averaged weights), pictures of samples, and the log.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from flowprior.data.latent_cache import LatentCache, LatentNormaliser
from flowprior.data.loader import training_batches
from flowprior.errors import UserError, entry_point
from flowprior.training.distributed import Workers, distributed_workers
from flowprior.training.loop import TrainingLoop
from flowprior.training.pictures import save_sheet
from flowprior.training.randomness import seed_global_generators, stream_seed
from flowprior.training.run_folder import RunFolder, Stopwatch, peak_memory_gb
from mar.config import MARStageConfig, build_generator, read_config
from mar.generator import GeneratorObjective
from mar.saved import save_generator
from mar.tokenizer import decode_to_uint8, load_autoencoder
from tokenizer.autoencoder import Autoencoder


@entry_point
def main() -> None:
    config = read_config(__doc__)
    folder = RunFolder(config.run_dir, "mar")
    with distributed_workers() as workers:
        autoencoder = load_autoencoder(config, workers.device)
        cache = open_cache(config, autoencoder, workers)
        normaliser = LatentNormaliser.from_statistics(cache.manifest["statistics"], config.cache.scale_per)
        made_from = {
            "autoencoder": autoencoder.fingerprint,
            "latent cache": cache.fingerprint,
            "scale of the latents": tensors_fingerprint(normaliser.state_dict()),
        }
        folder.open(config, workers, made_from)
        if folder.is_complete():
            folder.say_complete()
        else:
            train(config, folder, workers, cache, autoencoder)


def open_cache(config: MARStageConfig, autoencoder: Autoencoder, workers: Workers) -> LatentCache:
    """The run's latent cache, verified by the first process; a :class:`UserError` when it is another autoencoder's or has no scale."""
    cache = LatentCache(config.cache_folder, config.train.seed, verify=workers.is_main)
    if cache.manifest.get("origin", {}).get("autoencoder") != autoencoder.fingerprint:
        raise UserError(
            f"the latent cache {config.cache_folder} was made by another autoencoder: delete it and run `python -m mar.cache_latents`"
        )
    if "statistics" not in cache.manifest:
        raise UserError(
            f"the latent cache {config.cache_folder} has no scale: run `python -m mar.estimate_scale` first"
        )
    return cache


def train(
    config: MARStageConfig, folder: RunFolder, workers: Workers, cache: LatentCache, autoencoder: Autoencoder
) -> None:
    """Train, save the averaged weights with the latents' scale, and mark the stage complete."""
    stopwatch = Stopwatch(folder.path)
    normaliser = LatentNormaliser.from_statistics(cache.manifest["statistics"], config.cache.scale_per)
    shape = {"tokens": cache.shape[0], "channels": cache.shape[1], "num_classes": cache.num_classes}
    seed_global_generators(config.train.seed, "generator")
    objective = GeneratorObjective(build_generator(config.model, **shape), normaliser).to(workers.device)
    loop = TrainingLoop(
        objective,
        objective.model,
        config.train,
        config.optim,
        workers,
        folder.path,
        {"normaliser": normaliser},
        "generator",
    )

    def evaluate(step: int) -> dict[str, float]:
        if workers.is_main:
            preview(config, objective, autoencoder, folder.path / "pictures" / f"samples_{step:08d}.png", workers)
        return {}

    with stopwatch.kept(workers):
        loop.run(training_batches(cache, config.train, workers, loop.step), evaluate)
    if workers.is_main:
        with loop.averaged_weights():
            about = {
                "autoencoder": autoencoder.fingerprint,
                "class_names": cache.manifest["class_names"],
                "train": asdict(config.train),
            }
            fingerprint = save_generator(folder.path / "generator", objective, config.model, shape, about)
        folder.complete(
            {"fingerprint": fingerprint, "seconds": stopwatch.seconds(), "peak_memory_gb": peak_memory_gb()}
        )
        print(f"generator: {folder.path / 'generator'}  ({stopwatch.seconds():.0f} s, peak {peak_memory_gb():.1f} GB)")


def preview(
    config: MARStageConfig, objective: GeneratorObjective, autoencoder: Autoencoder, path: Path, workers: Workers
) -> None:
    """A picture of samples at fixed seeds, in columns of classes."""
    count, columns = config.sample.preview_images, min(10, objective.model.num_classes)
    labels = torch.arange(count, device=workers.device) % columns
    seeds = [stream_seed(config.sample.seed, "sample", i) for i in range(count)]
    latents = objective.normaliser.undo(objective.model.sample(labels, seeds, config.sample.preview_cfg))
    save_sheet(path, decode_to_uint8(autoencoder, latents), columns, enlarge=2 if config.data.size <= 64 else 1)


if __name__ == "__main__":
    main()
