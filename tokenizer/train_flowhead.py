"""Stage 1: pretrain the flow prior on target features.

    python -m tokenizer.train_flowhead [--preset digits] [option=value ...]

Writes ``<run_dir>/flowhead``: ``prior/`` (the frozen flow), ``target_samples.safetensors`` (projected target features, for kNN
distances) and ``prior_samples.safetensors`` (for pictures).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from flowprior.data.features import FeatureRows
from flowprior.data.loader import training_batches
from flowprior.errors import UserError, entry_point
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.prior import FlowPrior
from flowprior.flow.solver import sample
from flowprior.flow.target_map import TargetMap, TargetMapSettings, fit_target_map
from flowprior.flow.velocity import VelocityMLP
from flowprior.training.config import config_from_command_line, option
from flowprior.training.distributed import Workers, distributed_workers
from flowprior.training.files import write_tensors
from flowprior.training.loop import TrainConfig, TrainingLoop
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import stream_seed
from flowprior.training.run_folder import RunFolder, Stopwatch, peak_memory_gb
from tokenizer.targets import TargetConfig, TargetContext, TargetFeatures, load_target

KEPT_TARGET_ROWS = 100_000
KEPT_SAMPLES = 4096


@dataclass
class FlowHeadConfig:
    """Stage 1."""

    run_dir: str = option("runs/digits", "folder of the run; the stage writes into its flowhead/", changes_result=False)
    target: TargetConfig = option(TargetConfig, "")
    channels: int = option(8, "channels of the latents that the prior will shape")
    projection: Literal["random", "avg_pool", "pca", "identity"] = option(
        "random", "from the features' channels to the latents'"
    )
    centre: bool = option(True, "subtract the features' mean before projecting")
    width: int = option(256, "of the velocity network")
    depth: int = option(3, "residual blocks of the velocity network")
    pairs: int = option(4, "(t, noise) pairs per feature")
    group_size: int = option(16, "features that share a time; 1 as in the paper")
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")

    def __post_init__(self) -> None:
        if min(self.channels, self.width, self.depth, self.pairs, self.group_size) < 1:
            raise ValueError("channels, width, depth, pairs and group_size are at least 1")


@entry_point
def main() -> None:
    config = config_from_command_line(FlowHeadConfig, Path(__file__).parent / "configs" / "flowhead", __doc__)
    folder = RunFolder(config.run_dir, "flowhead")
    with distributed_workers() as workers:
        stopwatch = Stopwatch(folder.path)
        folder.check(config, {})  # before a target is computed over the one that a finished run was made from
        target = load_target(config.target, TargetContext(config.train.seed, folder.path, workers))
        check_batch(config, workers)
        folder.open(config, workers, {"target": target.fingerprint()})
        if folder.is_complete():
            folder.say_complete()
        else:
            train(config, folder, workers, target, stopwatch)


def check_batch(config: FlowHeadConfig, workers: Workers) -> None:
    """Groups of features that share a time must not depend on how many processes there are."""
    if config.train.micro_batch(workers.count) % config.group_size:
        raise UserError(
            f"group_size {config.group_size} does not divide the {config.train.micro_batch(workers.count)} features of a process's batch: "
            f"write another group_size or train.global_batch"
        )


def train(
    config: FlowHeadConfig, folder: RunFolder, workers: Workers, target: TargetFeatures, stopwatch: Stopwatch
) -> None:
    """Train, save the frozen prior, and mark the stage complete."""
    target_map = make_target_map(config, target)
    projected_std = target_map(target.features[:KEPT_TARGET_ROWS]).std().item()
    if workers.is_main:
        print(
            f"target {target.name}: {len(target.features)} x {target.features.shape[1]}, scale 1/std = {1 / target_map.std.item():.4f}, "
            f"{config.projection} projection to {config.channels} (std {projected_std:.3f})"
        )

    generator = torch.Generator().manual_seed(stream_seed(config.train.seed, "velocity"))
    velocity = VelocityMLP(config.channels, config.width, config.depth, generator=generator)
    objective = FlowMatchingObjective(velocity, target_map, config.pairs, config.group_size).to(workers.device)
    loop = TrainingLoop(
        objective, velocity, config.train, config.optim, workers, folder.path, {"target_map": target_map}, "flow prior"
    )

    def evaluate(step: int) -> dict[str, float]:
        return compare_samples(objective, target.features) if workers.is_main else {}

    with stopwatch.kept(workers):
        loop.run(training_batches(FeatureRows(target.features), config.train, workers, loop.step), evaluate)
    if workers.is_main:
        with loop.averaged_weights():
            finish(config, folder, objective, target, stopwatch)


def make_target_map(config: FlowHeadConfig, target: TargetFeatures) -> TargetMap:
    try:
        return fit_target_map(
            target.features, TargetMapSettings(config.channels, config.projection, config.centre, config.train.seed)
        )
    except ValueError as error:
        raise UserError(f"target '{target.name}': {error}") from error


@torch.no_grad()
def compare_samples(objective: FlowMatchingObjective, features: torch.Tensor, count: int = 2048) -> dict[str, float]:
    """Root-mean-square differences between prior samples and the target, in the mean and in the covariance (the target's variance is about 1)."""
    device = objective.target_map.matrix.device
    generator = torch.Generator(device).manual_seed(0)
    rows = torch.randint(len(features), (count,), generator=torch.Generator().manual_seed(0))
    target = objective.target_map(features[rows].to(device))  # (count, C)
    samples = sample(objective.velocity, tuple(target.shape), steps=25, generator=generator, device=device).float()
    return {
        "sample_mean_error": (samples.mean(0) - target.mean(0)).square().mean().sqrt().item(),
        "sample_covariance_error": (samples.T.cov() - target.T.cov()).square().mean().sqrt().item(),
    }


def finish(
    config: FlowHeadConfig,
    folder: RunFolder,
    objective: FlowMatchingObjective,
    target: TargetFeatures,
    stopwatch: Stopwatch,
) -> None:
    """Save the prior with the weights that ``objective`` holds, samples of it and of the target, and mark the stage complete."""
    figures = compare_samples(objective, target.features, KEPT_SAMPLES)
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
    prior.save(folder.path / "prior")
    rows = torch.randperm(len(target.features), generator=torch.Generator().manual_seed(0))[:KEPT_TARGET_ROWS]
    projected = prior.project(target.features[rows].to(prior.target_map.matrix.device))
    write_tensors(folder.path / "target_samples.safetensors", {"samples": projected})
    generator = torch.Generator(projected.device).manual_seed(0)
    write_tensors(
        folder.path / "prior_samples.safetensors", {"samples": prior.sample(KEPT_SAMPLES, generator=generator)}
    )
    folder.complete(
        {
            "fingerprint": prior.fingerprint,
            "target": prior.target,
            "projected_std": projected.std().item(),
            **figures,
            "seconds": stopwatch.seconds(),
            "peak_memory_gb": peak_memory_gb(),
        }
    )
    print(f"flow prior: {folder.path / 'prior'}  ({stopwatch.seconds():.0f} s, peak {peak_memory_gb():.1f} GB)")


if __name__ == "__main__":
    main()
