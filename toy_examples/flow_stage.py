"""Stage 1 in the plane: a flow is trained on the target and frozen, or its closed form takes the network's place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.distributed import World
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.run_folder import RunFolder, Stopwatch
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.randomness import StepRandom, stream_seed
from toy_examples.config import FlowConfig
from toy_examples.distributions import ToyDistribution
from toy_examples.exact_velocity import exact_velocity, fingerprint
from toy_examples.stable_target import StableTargetObjective

CHANNELS = 2
REMEDY = "write --redo {stage} to replace it, or --out <another folder>"


class FrozenFlow(NamedTuple):
    """What latents are aligned to."""

    velocity: Callable[[Tensor, Tensor], Tensor]  # v(x, t)
    fingerprint: str
    seconds: float  # that its training took


def exact_flow(target: ToyDistribution, name: str) -> FrozenFlow:
    """The closed-form velocity of the distribution called ``name``."""
    return FrozenFlow(exact_velocity(target), fingerprint(name), 0.0)


def trained_flow(target: ToyDistribution, config: FlowConfig, run_dir: Path, device: torch.device) -> FrozenFlow:
    """A network trained on Eq. 3, resumed or reused where it can be."""
    folder, world = RunFolder(run_dir, "flow", REMEDY), World(device=device)
    folder.open(config, world)
    if not folder.is_complete():
        stopwatch = Stopwatch(folder.path)
        generator = torch.Generator().manual_seed(stream_seed(config.train.seed, "velocity"))
        velocity = VelocityMLP(CHANNELS, config.width, config.depth, generator=generator)
        identity = TargetMap(torch.zeros(CHANNELS), torch.ones(()), torch.eye(CHANNELS))  # samples come normalised
        objective = (
            StableTargetObjective(velocity, config.pairs, config.group_size)
            if config.stable_target
            else FlowMatchingObjective(velocity, identity, config.pairs, config.group_size)
        ).to(device)
        loop = TrainingLoop(objective, velocity, config.train, config.optim, world, folder.path, description="flow")
        with stopwatch.kept(world):
            loop.run(_fresh_batches(target, config.train, loop.step * config.train.accumulation))
        with loop.averaged_weights():
            FlowPrior(velocity, identity, {"distribution": run_dir.name}).save(folder.path / "prior")
        folder.complete({"steps": config.train.steps, "seconds": round(stopwatch.seconds(), 2)})
    else:
        folder.say_complete()
    prior = FlowPrior.load(folder.path / "prior").to(device)
    seconds = folder.read_result("python toy_examples/run.py")["seconds"]
    return FrozenFlow(prior.velocity, prior.fingerprint, seconds)


def _fresh_batches(target: ToyDistribution, config: TrainConfig, start: int) -> Iterator[dict[str, Tensor]]:
    """Samples that no other step sees, as a function of (seed, position)."""
    for position in count(start):
        yield {"features": target.sample(config.micro_batch(1), StepRandom(config.seed, position).generator("data"))}
