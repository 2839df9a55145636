"""Stage 3: train the generator on cached latents.

    python -m <generator> train [--preset digits] [option=value ...]

Writes ``<run_dir>/<generator>``: ``generator/`` (the averaged weights), pictures of samples, and the log.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import torch

from flowprior.data.images import open_images, shared_fingerprint
from flowprior.data.latent_cache import LatentCache
from flowprior.data.latent_scale import LatentNormaliser, check_statistics
from flowprior.data.loader import training_batches
from flowprior.distributed import World, distributed_world
from flowprior.errors import UserError, one_line
from flowprior.notes import counted, note
from flowprior.run.files import tensors_fingerprint
from flowprior.run.pictures import save_sheet
from flowprior.run.provenance import differing
from flowprior.run.run_folder import RunFolder, Stopwatch, peak_memory_gb
from flowprior.training.loop import TrainingLoop
from flowprior.training.randomness import seed_global_generators
from generation.autoencoder import load_autoencoder
from generation.config import GenerationConfig
from generation.generator import GeneratorObjective, build_generator
from generation.sample_drawer import SampleDrawer
from generation.saved import load_generator, save_generator, start_from
from tokenizer.opening import Tokenizer


def main(stage: type[GenerationConfig]) -> None:
    config = stage.read(__doc__)
    folder = RunFolder(config.run_dir, config.NAME, product="generator")
    config.keep_what_began(folder)
    with distributed_world() as world, folder.held(world):
        autoencoder = load_autoencoder(config, world.device)
        cache = open_cache(config, autoencoder, world)
        check_images(config, cache, world)
        normaliser = LatentNormaliser.from_statistics(cache.manifest["statistics"], config.cache.scale_per)
        made_from = {
            "autoencoder": autoencoder.fingerprint,
            "latent cache": cache.fingerprint,
            "scale of the latents": tensors_fingerprint(normaliser.state_dict()),
        }
        start = None
        if config.start:
            start, saved = load_generator(config, autoencoder, world.device, Path(config.start))
            made_from["start"] = saved["fingerprint"]
        folder.open(config, world, made_from)
        if folder.is_complete():
            folder.say_complete()
        else:
            train(config, folder, world, cache, autoencoder, start)


def open_cache(config: GenerationConfig, autoencoder: Tokenizer, world: World) -> LatentCache:
    """The run's latent cache, verified by the first process; a :class:`UserError` when it is of another autoencoder or crop,
    or has no scale."""
    cache = LatentCache(config.cache_folder, config.train.seed, world.is_main, config.command_here("cache_latents"))
    kept, made_as = cache.manifest["origin"], {"size": config.data.size, **config.cache.describe()}
    wanted = {"autoencoder": autoencoder.fingerprint, "images": kept.get("images"), **made_as}
    if stale := differing(kept, wanted):
        raise UserError(
            f"the latent cache {config.cache_folder} was made from another input ({', '.join(stale)}): delete it and run "
            f"`{config.command_here('cache_latents')}`"
        )
    check_statistics(cache, config.command_here("estimate_scale"), config.cache.scale_per)
    return cache


def check_images(config: GenerationConfig, cache: LatentCache, world: World) -> None:
    """A :class:`UserError` where ``data.path`` names another place than the cache was made from, and other images lie there. None need to."""
    place = cache.manifest.get("place")
    if place is None or not config.data.path or config.data.has_subsets:
        return
    # A path that lies on one node of several is known there alone.
    if all(world.all_gather(place == config.data.place)):
        return
    images, reason = None, ""
    try:
        images = open_images(replace(config.data, size=config.cache.image_size(config.data.size)))
    except UserError as error:
        reason = one_line(error)
    if reasons := [told for told in world.all_gather(reason) if told]:
        note(f"training reads the latents of the images in {place}, and none of data.path ({reasons[0]})")
        return
    if shared_fingerprint(images, world) != cache.manifest["origin"].get("images"):
        raise UserError(
            f"the latent cache {config.cache_folder} was made from the images of {place}, and those in {config.data.path} are others: "
            f"name the former, or write run_dir=<another> and run `{config.command('cache_latents')} run_dir=<another>` first"
        )


def train(
    config: GenerationConfig,
    folder: RunFolder,
    world: World,
    cache: LatentCache,
    autoencoder: Tokenizer,
    start: GeneratorObjective | None = None,
) -> None:
    """Train, save the averaged weights with the latents' scale, and mark the stage complete."""
    stopwatch = Stopwatch(folder.path)
    normaliser = LatentNormaliser.from_statistics(cache.manifest["statistics"], config.cache.scale_per)
    shape = {"tokens": cache.shape[0], "channels": cache.shape[1], "num_classes": cache.num_classes}
    train_config = config.train
    if config.evaluate.online_epochs:
        steps = round(config.evaluate.online_epochs * len(cache) / config.train.global_batch)
        train_config = replace(config.train, eval_steps=max(1, steps))
    seed_global_generators(config.train.seed, "generator")
    objective = GeneratorObjective(build_generator(config.model, **shape), normaliser).to(world.device)
    objective.model.check_guidance(config.sample.preview_cfg)
    if world.is_main and not objective.model.drops_labels and set(config.sample.cfg) != {1}:
        note("label_drop=0 trains a generator that cannot be guided: it is sampled with sample.cfg=[1]")
    if start is not None:
        start_from(objective, start, config.start)
    if world.is_main:
        print(
            f"{config.cache_folder} has latents of {len(cache)} images of {counted(cache.num_classes, 'class', 'classes')}"
        )
    loop = TrainingLoop(
        objective,
        objective.model,
        train_config,
        config.optim,
        world,
        folder.path,
        {"normaliser": normaliser},
        "generator",
    )
    if start is not None and loop.step == 0:
        note(f"weights and the latents' scale are those of {config.start}; the cache's scale is not used")

    about = {
        "autoencoder": autoencoder.fingerprint,
        "posterior": config.cache.posterior,
        "images": cache.manifest["origin"].get("images")
        if config.cache.image_size(config.data.size) == config.data.size
        else None,
        "class_names": cache.manifest["class_names"],
        "class_counts": torch.bincount(cache.labels.cpu(), minlength=cache.num_classes).tolist(),
        "train": asdict(config.train),
    }
    drawer = SampleDrawer(objective, autoencoder, config.sample, world)
    online = None
    if config.evaluate.online_count:
        from generation.training_fid import TrainingFID  # brings torch-fidelity, which training needs for this alone

        # Here, since a missing reference is better missed before the first step.
        online = TrainingFID(config, drawer, {"about": about, "shape": shape})

    def evaluate(step: int) -> dict[str, float]:
        if world.is_main:
            preview(config, drawer, folder.path / "pictures" / f"samples_{step:08d}.png")
        return online.measure() if online else {}

    if config.cache.hold == "auto":
        cache.hold_on(world.device)
    with stopwatch.kept(world):
        loop.run(training_batches(cache, train_config, world, loop.step), evaluate)
    if world.is_main:
        with loop.averaged_weights():
            fingerprint = save_generator(folder.path / "generator", objective, config.model, shape, about)
        folder.complete(
            {"fingerprint": fingerprint, "seconds": stopwatch.seconds(), "peak_memory_gb": peak_memory_gb()}
        )
        print(f"generator: {folder.path / 'generator'}  ({stopwatch.seconds():.0f} s, peak {peak_memory_gb():.1f} GB)")


def preview(config: GenerationConfig, drawer: SampleDrawer, path: Path) -> None:
    """A picture of samples at fixed seeds, in columns of classes."""
    columns = min(10, drawer.bundle.model.num_classes)
    images = drawer.draw(range(config.sample.preview_images), torch.arange(columns), config.sample.preview_cfg)
    save_sheet(path, images, columns, enlarge=2 if config.data.size <= 64 else 1)
