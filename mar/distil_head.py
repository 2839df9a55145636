"""After stage 3: distil the trained head of MAR into its flow map, which draws a token in one to four evaluations, guidance included.

    python -m mar.distil_head [--preset digits] [--where-asked] [option=value ...]

Reads the trained generator and its latent cache, and writes ``<run_dir>/mar/flow_map``: ``map/`` (the averaged weights) and the log.
Samples are drawn with it by model.mar.sampler.head=map. With --where-asked nothing is done unless the sampler asks for it.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial

from flowprior.data.latent_cache import LatentCache
from flowprior.data.loader import training_batches
from flowprior.data.order import SampleKey
from flowprior.distributed import World, distributed_world
from flowprior.errors import UserError, entry_point
from flowprior.run.run_folder import RunFolder, Stopwatch, peak_memory_gb
from flowprior.training.loop import TrainingLoop
from flowprior.training.randomness import StepRandom, seed_global_generators
from generation.autoencoder import load_autoencoder
from generation.generator import GeneratorObjective
from generation.saved import load_generator
from generation.train import open_cache
from mar.config import MARStageConfig
from mar.distillation import HeadDistillation

WHERE_ASKED = "--where-asked"
SHOWN_IMAGES, SHOWN_DRAWS = 64, 8  # of whose tokens the log has the map's error


def distil_head(stage: type[MARStageConfig]) -> None:
    """Distil the trained head into its flow map."""
    words = [word for word in sys.argv[1:] if word != WHERE_ASKED]
    config = stage.read(__doc__ or "", words)
    if WHERE_ASKED in sys.argv and not config.samples_by_map:
        return
    if config.model.name != "mar":
        raise UserError(f"the head of MAR is distilled, not of '{config.model.name}'")
    folder = RunFolder(config.folder, config.distillation_folder.name, remedy="delete {path}")
    with distributed_world() as world, folder.held(world):
        autoencoder = load_autoencoder(config, world.device)
        bundle, saved = load_generator(config, autoencoder, world.device)
        cache = open_cache(config, autoencoder, world)
        folder.open(config.distil, world, {"generator": saved["fingerprint"], "latent cache": cache.fingerprint})
        if folder.is_complete():
            folder.say_complete()
        else:
            distil(config, folder, world, cache, bundle, saved["fingerprint"])


def distil(
    config: MARStageConfig,
    folder: RunFolder,
    world: World,
    cache: LatentCache,
    bundle: GeneratorObjective,
    generator: str,
) -> None:
    """Train the map, save its averaged weights with the fingerprint of its ``generator``, and mark the stage complete."""
    stopwatch, settings = Stopwatch(folder.path), config.distil
    seed_global_generators(settings.train.seed, "flow map")
    objective = HeadDistillation(bundle.model, bundle.normaliser, settings).to(world.device)
    loop = TrainingLoop(
        objective,
        objective.flow_map,
        settings.train,
        settings.optim,
        world,
        folder.path,
        description="flow map",
    )
    shown = cache.batch([SampleKey(index, epoch=-1) for index in range(min(SHOWN_IMAGES, len(cache)))])
    shown = {name: value.to(world.device) for name, value in shown.items()}

    def errors(step: int) -> dict[str, float]:
        draws = [StepRandom(settings.train.seed, -draw, device=world.device) for draw in range(1, SHOWN_DRAWS + 1)]
        found = [objective.errors(shown, random) for random in draws]
        return {name: sum(each[name] for each in found) / len(found) for name in found[0]}

    if config.cache.hold == "auto":
        cache.hold_on(world.device)
    with stopwatch.kept(world):
        loop.run(training_batches(cache, settings.train, world, loop.step), errors)
    if world.is_main:
        with loop.averaged_weights():
            about = {"distil": asdict(settings), "errors": errors(loop.step)}
            objective.flow_map.save(folder.path / "map", generator, about)
            fingerprint = objective.flow_map.fingerprint
        result = {"fingerprint": fingerprint, "seconds": stopwatch.seconds(), "peak_memory_gb": peak_memory_gb()}
        folder.complete(about["errors"] | result)
        print(f"flow map: {folder.path / 'map'}  ({describe(about['errors'])}, {stopwatch.seconds():.0f} s)")


def describe(errors: dict[str, float]) -> str:
    """For the terminal."""
    return "error " + ", ".join(f"{value:.3f} in {name.rsplit('_', 1)[-1]}" for name, value in errors.items())


main = entry_point(partial(distil_head, MARStageConfig))

if __name__ == "__main__":
    main()
