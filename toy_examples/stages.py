"""The two stages: a flow is trained on the target and frozen; latents are moved until the flow likes them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowprior.errors import UserError
from flowprior.flow.losses import alignment_loss
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.path import group_size_for
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.training.config import changed_options, option, read_yaml, to_dict
from flowprior.training.distributed import Workers
from flowprior.training.files import read_tensors, write_tensors
from flowprior.training.loop import TrainConfig, TrainingLoop
from flowprior.training.randomness import StepRandom, stream_seed
from flowprior.training.reporting import read_log
from flowprior.training.run_folder import RunFolder, Stopwatch
from toy_examples.alignment import alignment_at
from toy_examples.config import FlowConfig, LatentConfig
from toy_examples.distributions import ToyDistribution

CHANNELS = 2


@dataclass
class LatentRun:
    """Stage 2's resolved config: its options and the flow that it belongs to."""

    prior: str = option("", "fingerprint of the flow")
    options: LatentConfig = option(LatentConfig, "")


@dataclass
class AlignedLatents:
    """What stage 2 leaves.

    Attributes:
        start, end: ``(N, 2)`` before and after.
        history: rows of ``step``, ``alignment`` and ``nll``, means over the latents, from step 0 on.
        seconds: that the stage took.
    """

    start: Tensor
    end: Tensor
    history: list[dict[str, Any]]
    seconds: float


def _open(folder: RunFolder, config: Any, workers: Workers) -> None:
    file = folder.path / "config.yaml"
    if file.is_file():
        changes = changed_options(type(config), read_yaml(file), to_dict(config))
        if changes:
            raise UserError(
                f"{folder.path} holds a run with other options ({'; '.join(changes[:4])}): "
                f"write --redo {folder.stage} to replace it, or --out <another folder>"
            )
    folder.open(config, workers)


def forget(run_dir: Path, stage: str) -> None:
    """Delete what ``stage`` left, and what stands on it."""
    for name in ("flow", "latents") if stage == "flow" else ("latents",):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def _fresh_batches(target: ToyDistribution, config: TrainConfig, start: int) -> Iterator[dict[str, Tensor]]:
    """Samples that no other step sees, as a function of (seed, position)."""
    for position in count(start):
        yield {"features": target.sample(config.micro_batch(1), StepRandom(config.seed, position).generator("data"))}


def train_flow(
    target: ToyDistribution, config: FlowConfig, run_dir: Path, device: torch.device
) -> tuple[FlowPrior, float]:
    """Stage 1 (Eq. 3), resumed or reused where it can be.

    Returns:
        The frozen prior on ``device``, and the seconds that its training took.
    """
    folder, workers = RunFolder(run_dir, "flow"), Workers(device=device)
    _open(folder, config, workers)
    if not folder.is_complete():
        stopwatch = Stopwatch(folder.path)
        generator = torch.Generator().manual_seed(stream_seed(config.train.seed, "velocity"))
        velocity = VelocityMLP(CHANNELS, config.width, config.depth, generator=generator)
        identity = TargetMap(torch.zeros(CHANNELS), torch.ones(()), torch.eye(CHANNELS))  # samples come normalised
        objective = FlowMatchingObjective(velocity, identity, config.pairs, config.group_size).to(device)
        loop = TrainingLoop(objective, velocity, config.train, config.optim, workers, folder.path, description="flow")
        try:
            loop.run(_fresh_batches(target, config.train, loop.step * config.train.accumulation))
        finally:
            stopwatch.save()
        with loop.averaged_weights():
            FlowPrior(velocity, identity, {"distribution": run_dir.name}).save(folder.path / "prior")
        folder.complete({"steps": config.train.steps, "seconds": round(stopwatch.seconds(), 2)})
    else:
        folder.say_complete()
    seconds = folder.read_result("python toy_examples/run.py")["seconds"]
    return FlowPrior.load(folder.path / "prior").to(device), seconds


class Latents(nn.Module):
    """``(N, 2)`` free points, drawn from N(0, I)."""

    def __init__(self, number: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(stream_seed(seed, "latents"))
        self.points = nn.Parameter(torch.randn(number, CHANNELS, generator=generator))


class AlignmentObjective(nn.Module):
    """Eq. 5 as a function of the latents alone."""

    def __init__(self, latents: Latents, prior: FlowPrior, config: LatentConfig) -> None:
        super().__init__()
        self.latents, self.prior, self.config = latents, prior, config

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> dict[str, Tensor]:
        config, points = self.config, self.latents.points
        groups = points.view(-1, group_size_for(len(points), config.group_size), CHANNELS)  # (N / size, size, 2)
        noise = random.normal("noise", len(groups), config.pairs, *groups.shape[1:])
        t = random.times("t", len(groups), config.pairs, 1)
        return {
            "loss": alignment_loss(
                self.prior.velocity, groups, pairs=config.pairs, group_size=groups.shape[1], noise=noise, t=t
            )
        }


def align_latents(
    prior: FlowPrior, target: ToyDistribution, config: LatentConfig, run_dir: Path, device: torch.device
) -> AlignedLatents:
    """Stage 2 (Eq. 5), resumed or reused where it can be; L_align and the exact NLL are recorded every ``eval_steps``."""
    folder, workers = RunFolder(run_dir, "latents"), Workers(device=device)
    _open(folder, LatentRun(prior.fingerprint, config), workers)
    latents = Latents(config.train.global_batch, config.train.seed).to(device)
    start = latents.points.detach().clone()

    def record(points: Tensor) -> dict[str, float]:
        return {
            "alignment": alignment_at(prior.velocity, points, config.record_pairs).mean().item(),
            "nll": -target.log_density(points).mean().item(),
        }

    if not folder.is_complete():
        stopwatch = Stopwatch(folder.path)
        objective = AlignmentObjective(latents, prior, config)
        loop = TrainingLoop(objective, latents, config.train, config.optim, workers, folder.path, description="latents")
        nothing: Iterator[dict[str, Tensor]] = ({} for _ in count())
        try:
            loop.run(nothing, evaluate=lambda step: record(latents.points.detach()))
        finally:
            stopwatch.save()
        write_tensors(folder.path / "latents.safetensors", {"start": start, "end": latents.points})
        folder.complete({"steps": config.train.steps, "seconds": round(stopwatch.seconds(), 2)})
    else:
        folder.say_complete()
    end = read_tensors(folder.path / "latents.safetensors", "latents")["end"].to(device)
    history = [{"step": 0, **record(start)}] + [row for row in read_log(folder.path / "log.jsonl") if "nll" in row]
    return AlignedLatents(start, end, history, folder.read_result("python toy_examples/run.py")["seconds"])
