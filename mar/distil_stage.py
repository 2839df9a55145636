"""What the stages that distil a trained MAR have in common: from the trained generator and its cached latents to what is distilled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flowprior.data.latent_cache import LatentCache
from flowprior.data.loader import training_batches
from flowprior.data.order import SampleKey
from flowprior.distributed import World, distributed_world
from flowprior.errors import UserError
from flowprior.precision import full_precision
from flowprior.rounding import rounded
from flowprior.run.run_folder import RunFolder, Stopwatch, peak_memory_gb
from flowprior.training.loop import TrainingLoop
from flowprior.training.randomness import StepRandom, seed_global_generators
from generation.autoencoder import load_autoencoder
from generation.generator import GeneratorObjective
from generation.saved import load_generator
from generation.train import open_cache
from mar.config import MARStageConfig
from mar.distillation import DistilConfig, Distillation

SHOWN_IMAGES, SHOWN_DRAWS = 64, 8  # of whose tokens the log has the error


@dataclass(frozen=True)
class DistilStage:
    """One of them.

    Attributes:
        what: is distilled, in words.
        settings: of the stage.
        folder: it writes into.
        product: the name of what it leaves there.
        inputs: fingerprints of what it is made from besides generator and latents, by name.
        make: the objective, from the generator that is distilled.
    """

    what: str
    settings: DistilConfig
    folder: Path
    product: str
    inputs: dict[str, str]
    make: Callable[[GeneratorObjective], Distillation]


def run(config: MARStageConfig, describe_stage: Callable[[MARStageConfig, dict[str, Any]], DistilStage]) -> None:
    """Distil as ``describe_stage`` says of the config and the generator's ``config.json``, unless that is complete.

    Raises:
        UserError: the generator is not MAR, or samples are asked for at guidance scales that what is distilled will not serve.
    """
    if config.model.name != "mar":
        raise UserError(f"MAR is distilled, not '{config.model.name}'")
    config.check_distilled_guidance()
    with distributed_world() as world:
        autoencoder = load_autoencoder(config, world.device)
        bundle, saved = load_generator(config, autoencoder, world.device)
        if not bundle.model.drops_labels:
            raise UserError(
                "the generator was trained with label_drop=0: there is no guidance to distil; train it with model.mar.label_drop=0.1"
            )
        cache, stage = open_cache(config, autoencoder, world), describe_stage(config, saved)
        folder = RunFolder(stage.folder.parent, stage.folder.name, remedy="delete {path}", product=stage.product)
        with folder.held(world):
            inputs = {"generator": saved["fingerprint"], "latent cache": cache.fingerprint, **stage.inputs}
            folder.open(stage.settings, world, inputs)
            if folder.is_complete():
                folder.say_complete()
                return
            if config.cache.hold == "auto":
                cache.hold_on(world.device)
            distil(stage, folder, world, cache, bundle, saved["fingerprint"])


def distil(
    stage: DistilStage, folder: RunFolder, world: World, cache: LatentCache, bundle: GeneratorObjective, generator: str
) -> None:
    """Train, save the averaged weights with the fingerprint of the ``generator``, and mark the stage complete."""
    stopwatch, settings = Stopwatch(folder.path), stage.settings
    seed_global_generators(settings.train.seed, stage.what)
    objective = stage.make(bundle).to(world.device)
    product = objective.product
    loop = TrainingLoop(objective, product, settings.train, settings.optim, world, folder.path, description=stage.what)
    shown = {name: value.to(world.device) for name, value in shown_images(cache).items()}

    def errors(step: int) -> dict[str, float]:
        draws = [StepRandom(settings.train.seed, -draw, device=world.device) for draw in range(1, SHOWN_DRAWS + 1)]
        with full_precision(world.device):
            found = [objective.errors(shown, random) for random in draws]
        return {name: sum(each[name] for each in found) / len(found) for name in found[0]}

    if world.is_main:
        print(
            f"{stage.what}: {settings.train.steps:,} steps on {settings.train.global_batch} of {len(cache):,} images each, towards "
            f"{settings.solver_steps} steps of {settings.solver} by the generator in {stage.folder.parent / 'generator'}"
        )
    with stopwatch.kept(world):
        loop.run(training_batches(cache, settings.train, world, loop.step), errors)
    if world.is_main:
        with loop.averaged_weights():
            about = {"distil": asdict(settings), "errors": errors(loop.step)}
            product.save(folder.path / stage.product, generator, about)
            fingerprint = product.fingerprint
        result = {"fingerprint": fingerprint, "seconds": stopwatch.seconds(), "peak_memory_gb": peak_memory_gb()}
        folder.complete(about["errors"] | result)
        print(
            f"{stage.what}: {folder.path / stage.product}  ({describe(about['errors'])}, {stopwatch.seconds():.0f} s)"
        )


def shown_images(cache: LatentCache) -> dict[str, torch.Tensor]:
    """Latents on which errors are measured, spread over the cache, since images in folders come class by class."""
    spread = torch.linspace(0, len(cache) - 1, min(SHOWN_IMAGES, len(cache))).long().tolist()
    return cache.batch([SampleKey(index, epoch=-1) for index in spread])


def describe(errors: dict[str, float]) -> str:
    """For the terminal."""
    return "error " + ", ".join(f"{rounded(value)} in {name.rsplit('_', 1)[-1]}" for name, value in errors.items())
