"""Stage 1: pretrain the flow prior on target features.

    python -m tokenizer.prior.train_flowhead [--preset digits] [option=value ...]

Writes ``<run_dir>/flowhead``: ``prior/`` (the frozen flow), ``target_samples.safetensors`` (projected target features, for kNN
distances), ``prior_samples.safetensors``, pictures of the two, and the log. Images of the data section are for the targets that take
features of images (timm, autoencoder, codebook).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from flowprior.data.embedded import EMBEDDED
from flowprior.data.features import FeatureRows
from flowprior.data.images import ImageConfig
from flowprior.data.loader import training_batches
from flowprior.distributed import World, distributed_world
from flowprior.errors import UserError, entry_point
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import (
    STATISTICS_ROWS,
    TargetMap,
    TargetMapSettings,
    count_bad_rows,
    fit_target_map,
)
from flowprior.flow.times import TimeConfig
from flowprior.flow.velocity import VelocityMLP
from flowprior.metrics.knn import NEIGHBOUR
from flowprior.notes import note
from flowprior.run.config import option
from flowprior.run.files import write_tensors
from flowprior.run.presets import config_from_command_line
from flowprior.run.run_folder import RunFolder, Stopwatch, peak_memory_gb
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import stream_seed
from tokenizer.prior.evaluation import PriorEvaluation
from tokenizer.prior.held_out import RowSplit, split_rows
from tokenizer.prior.normalisation import describe_normalisation, odd_about, say_normalisation
from tokenizer.prior.targets import (
    TargetConfig,
    TargetContext,
    TargetFeatures,
    embedded_images_of,
    load_target,
    takes_images,
)

KEPT_TARGET_ROWS = 100_000
KEPT_SAMPLES = 4096


@dataclass
class FlowPriorConfig:
    """Stage 1."""

    run_dir: str = option("runs/digits", "folder of the run; the stage writes into its flowhead/", changes_result=False)
    target: TargetConfig = option(TargetConfig, "")
    data: ImageConfig = option(ImageConfig, "")
    held_out: float = option(
        0.0,
        "share of the target's rows (whole images) that are not trained on but measured on; 0: measured on training rows",
    )
    channels: int = option(8, "channels of the latents that the prior will shape")
    projection: Literal["random", "avg_pool", "pca", "identity"] = option(
        "random", "map from the features' channels to the latents'"
    )
    centre: bool = option(True, "subtract the features' mean before projecting")
    width: int = option(256, "width of the velocity network")
    depth: int = option(3, "residual blocks of the velocity network")
    pairs: int = option(4, "(t, noise) pairs per feature")
    group_size: int = option(16, "features that share a time; 1 as in the paper")
    times: TimeConfig = option(TimeConfig, "")
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")

    def __post_init__(self) -> None:
        if min(self.channels, self.width, self.depth, self.pairs, self.group_size) < 1:
            raise ValueError("channels, width, depth, pairs and group_size are at least 1")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is a share in [0, 1), not {self.held_out}")


PRESETS = Path(__file__).parent / "configs"


@entry_point
def main() -> None:
    config = config_from_command_line(FlowPriorConfig, PRESETS, __doc__)
    folder = RunFolder(config.run_dir, "flowhead", product="prior")
    with distributed_world() as world, folder.held(world):
        stopwatch = Stopwatch(folder.path)
        folder.check(config, {})  # before a target is computed over the one that a finished run was made from
        context = TargetContext(config.train.seed, folder.path, world, config.data, config.train.loader_workers)
        check_images_are_used(config)
        target = load_target(config.target, context)
        check_batch(config, world)
        inputs = {"target": target.fingerprint()}
        if folder.check(config, inputs):
            stopwatch.restart()  # the run of other options or inputs gives way
        if folder.is_complete():
            folder.open(config, world, inputs)
            folder.say_complete()
            return
        check_target(target, world)
        split = split_rows(len(target.features), config.held_out, config.train.seed, target.rows_per_sample)
        target_map = make_target_map(config, target, split)  # before anything is written, since it refuses some targets
        folder.open(config, world, inputs)
        train(config, folder, world, target, split, target_map, stopwatch)


def check_images_are_used(config: FlowPriorConfig) -> None:
    """Say where images are named or held out and the target does not heed it; a :class:`UserError` where it is made of other images."""
    of = embedded_images_of(config.target)
    if of and config.data.source not in ("digits", of) and not config.data.path:  # the digits are the option's default
        raise UserError(
            f"the target '{config.target.source}' is made of the embedded {of}, and data.source is {config.data.source}: leave that out, or "
            "write target.source=timm for features of these images"
            + (f", or the target's of={config.data.source}" if config.data.source in EMBEDDED else "")
        )
    if config.data.subset != "all" and of:
        note(
            f"the target '{config.target.source}' is made of all embedded digits: data.subset={config.data.subset} leaves none out of the prior"
        )
    if not config.data.path or takes_images(config.target):
        return
    if of:
        raise UserError(
            f"the target '{config.target.source}' is made of the embedded {of}, and DATA or data.path names {config.data.path}: leave that "
            "out, or write target.source=timm for features of these images, or DATA=features.npy for features of your own"
        )
    note(f"the target '{config.target.source}' is not made of images: {config.data.path} is not read in this stage")


def check_target(target: TargetFeatures, world: World) -> None:
    """What stage 2 needs of a target: as many rows as its kNN distance looks at, all of them finite.

    The processes look through the table together, unless whoever made it has.
    """
    count = len(target.features)
    if count < NEIGHBOUR:
        raise UserError(
            f"the target {target.name} has {count} rows, and stage 2 compares latents with the {NEIGHBOUR}th nearest of them: "
            f"give it {NEIGHBOUR} rows or more"
        )
    if target.known_finite:
        return
    bad_rows = world.all_gather(count_bad_rows(target.features, world.rank, world.size))
    if bad := sum(number for number, _ in bad_rows):
        first = min(row for number, row in bad_rows if number)
        raise UserError(
            f"the target {target.name} holds values that are NaN or infinite in float32 in {bad} of its {count} rows, first in row {first}: "
            "mend them or leave them out"
        )


def check_batch(config: FlowPriorConfig, world: World) -> None:
    """Groups of features that share a time must not depend on how many processes there are."""
    if config.train.micro_batch(world.size) % config.group_size:
        raise UserError(
            f"group_size {config.group_size} does not divide the {config.train.micro_batch(world.size)} features of a process's batch: "
            f"write another group_size or train.global_batch"
        )


def train(
    config: FlowPriorConfig,
    folder: RunFolder,
    world: World,
    target: TargetFeatures,
    split: RowSplit,
    target_map: TargetMap,
    stopwatch: Stopwatch,
) -> None:
    """Train, save the frozen prior, and mark the stage complete."""
    normalisation = describe_normalisation(target, target_map, config.projection, config.train.seed)
    if world.is_main:
        say_normalisation(target, split, normalisation)
        for sentence in odd_about(normalisation, is_codebook=config.target.source == "codebook"):
            note(sentence)

    generator = torch.Generator().manual_seed(stream_seed(config.train.seed, "velocity"))
    velocity = VelocityMLP(config.channels, config.width, config.depth, generator=generator)
    objective = FlowMatchingObjective(velocity, target_map, config.pairs, config.group_size, config.times)
    objective.to(world.device)
    loop = TrainingLoop(
        objective, velocity, config.train, config.optim, world, folder.path, {"target_map": target_map}, "flow prior"
    )
    evaluation = PriorEvaluation(objective, target.features, split, folder.path) if world.is_main else None

    def evaluate(step: int) -> dict[str, float]:
        return evaluation(step) if evaluation else {}

    rows = FeatureRows(target.features, split.train)
    with stopwatch.kept(world):
        metrics = loop.run(training_batches(rows, config.train, world, loop.step), evaluate)
    if evaluation:
        with loop.averaged_weights():
            about = {"normalisation": normalisation, "compared_with": evaluation.compared_with}
            finish(config, folder, objective, target, about | (metrics or evaluation(loop.step)), stopwatch)


def make_target_map(config: FlowPriorConfig, target: TargetFeatures, split: RowSplit) -> TargetMap:
    """The normalisation and projection, measured on rows that are trained on."""
    features = target.features
    if split.train is not None:
        generator = torch.Generator().manual_seed(stream_seed(config.train.seed, "rows to normalise by"))
        features = features[split.draw_train(STATISTICS_ROWS, len(features), generator)]
    try:
        return fit_target_map(
            features,
            TargetMapSettings(config.channels, config.projection, config.centre, config.train.seed),
            looked_through=True,
        )
    except ValueError as error:
        raise UserError(f"target '{target.name}': {error}") from error


def finish(
    config: FlowPriorConfig,
    folder: RunFolder,
    objective: FlowMatchingObjective,
    target: TargetFeatures,
    result: dict[str, Any],
    stopwatch: Stopwatch,
) -> None:
    """Save the prior with the weights that ``objective`` holds, samples of it and of the target, and mark the stage complete."""
    prior = FlowPrior(
        objective.velocity,
        objective.target_map,
        {
            "name": target.name,
            "count": len(target.features),
            "fingerprint": target.fingerprint(),
            "projection": config.projection,
        },
    )
    rows = torch.randperm(len(target.features), generator=torch.Generator().manual_seed(0))[:KEPT_TARGET_ROWS]
    projected = prior.project(target.features[rows].to(prior.target_map.matrix.device))
    samples = prior.sample(KEPT_SAMPLES, generator=torch.Generator(projected.device).manual_seed(0))
    check_prior(prior, projected, samples)
    prior.save(folder.path / "prior")
    write_tensors(folder.path / "target_samples.safetensors", {"samples": projected})
    write_tensors(folder.path / "prior_samples.safetensors", {"samples": samples})
    folder.complete(
        {
            "fingerprint": prior.fingerprint,
            "target": prior.target,
            **result,
            "seconds": stopwatch.seconds(),
            "peak_memory_gb": peak_memory_gb(),
        }
    )
    print(f"flow prior: {folder.path / 'prior'}  ({stopwatch.seconds():.0f} s, peak {peak_memory_gb():.1f} GB)")


def check_prior(prior: FlowPrior, projected: Tensor, samples: Tensor) -> None:
    """A :class:`UserError` unless the weights, the projected target ``(n, C)`` and samples ``(m, C)`` are finite, as stage 2 needs them."""
    parts = {"weights": prior.state_dict().values(), "projected target": [projected], "samples": [samples]}
    bad = [name for name, tensors in parts.items() if not all(torch.isfinite(tensor).all() for tensor in tensors)]
    if bad:
        raise UserError(
            f"the flow prior's {' and '.join(bad)} are not finite, so that stage 2 cannot use it: train it with a lower optim.lr in another run_dir"
        )


if __name__ == "__main__":
    main()
