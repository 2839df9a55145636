"""A small training run on the real loop, data order and loader: imported by tests, and run by them as a process to be killed."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from flowprior.data.loader import training_batches
from flowprior.data.order import SampleKey
from flowprior.distributed import World, distributed_world
from flowprior.errors import UserError, entry_point
from flowprior.run import files
from flowprior.run.files import tensors_fingerprint
from flowprior.training import checkpoint
from flowprior.training.config import TrainConfig
from flowprior.training.loop import NonFiniteLoss, TrainingLoop
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom


class Points:
    """20 fixed points in the plane; a poisoned index has infinite coordinates."""

    def __init__(self, poisoned: int = -1) -> None:
        self.points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
        if poisoned >= 0:
            self.points[poisoned] = float("inf")

    def __len__(self) -> int:
        return 20

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        index = torch.tensor([key.index for key in keys])
        return {"x": self.points[index], "index": index}


class Denoise(Objective):
    """Guess a point from a noisy copy of it, through dropout."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 2))
        self.seen: list[list[int]] = []

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        self.seen.append(batch["index"].tolist())
        guess = self.net(batch["x"] + 0.5 * random.normal("noise", *batch["x"].shape))
        loss = (guess - batch["x"]).square().mean()
        return StepOutput(loss, {"guess_size": guess.square().mean()})


def make_loop(folder: Path | None, config: TrainConfig, world: World, dropout: float = 0.3) -> TrainingLoop:
    objective = Denoise(dropout)
    return TrainingLoop(
        objective,
        objective.net,
        config,
        OptimConfig(lr=0.01, warmup_steps=4, weight_decay=0.01),
        world,
        folder,
        progress=False,
    )


def small_config(steps: int = 12, **options) -> TrainConfig:
    return TrainConfig(
        **{
            "steps": steps,
            "global_batch": 8,
            "accumulation": 2,
            "log_steps": 1,
            "checkpoint_steps": 1,
            "keep_checkpoints": 99,
            "tensorboard": False,
            **options,
        }
    )


def train(
    folder: Path | None,
    config: TrainConfig,
    world: World | None = None,
    dropout: float = 0.3,
    poisoned: int = -1,
    after_optimizer_step=None,
) -> TrainingLoop:
    world = world or World()
    loop = make_loop(folder, config, world, dropout)
    loop.run(training_batches(Points(poisoned), config, world, loop.step), after_optimizer_step=after_optimizer_step)
    return loop


def state_hash(loop: TrainingLoop) -> str:
    """Weights, optimiser and average, whatever files they come from."""
    tensors = {f"model.{name}": value for name, value in loop.model.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in loop.ema.state_dict().items()}
    for number, state in loop.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return tensors_fingerprint(tensors)


def slow_flushes(seconds: float) -> None:
    """Stretch every save, so that a kill often falls inside one."""
    flush = files.flush_to_disk

    def slowly(path: Path) -> None:
        time.sleep(seconds)
        flush(path)

    files.flush_to_disk = checkpoint.flush_to_disk = slowly


def several_processes(folder: Path) -> None:
    """What the test of world sizes looks at: sample ids, hashes, and a value that is not finite on one process only."""
    with distributed_world() as world:
        plain = train(folder / "plain", small_config(accumulation=1), world, dropout=0.0)
        train(folder / "dropout", small_config(accumulation=1), world)
        poisoned = make_loop(folder / "poisoned", small_config(accumulation=1, non_finite_steps=1), world)
        before, message = state_hash(poisoned), ""
        try:
            poisoned.run(training_batches(Points(poisoned=7), poisoned.config, world))
        except NonFiniteLoss as error:
            message = str(error)
        poisoned_hash = state_hash(make_loop(folder / "poisoned", poisoned.config, World()))  # of the last checkpoint
        own_disk, apart = folder / f"disk{world.rank}", ""
        if world.is_main:
            train(own_disk, small_config(2, accumulation=1))
        world.barrier()
        try:
            make_loop(own_disk, small_config(accumulation=1), world)
        except UserError as error:
            apart = str(error)
        outcome = {
            "apart": apart,
            "seen": plain.objective.seen,
            "hash": state_hash(plain),
            "message": message,
            "poisoned_step": poisoned.step,
            "poisoned_seen": poisoned.objective.seen,
            "unchanged": state_hash(poisoned) == poisoned_hash and before != poisoned_hash,
        }
        (folder / f"rank{world.rank}.json").write_text(json.dumps(outcome))


def run(folder: Path, steps: int, step_seconds: float = 0.0, flush_seconds: float = 0.0, loaders: int = 0) -> None:
    torch.set_num_threads(1)
    if flush_seconds:
        slow_flushes(flush_seconds)

    def wait(terms: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        time.sleep(step_seconds)
        return {}

    train(folder, small_config(steps, keep_checkpoints=2, loader_workers=loaders), after_optimizer_step=wait)


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--step-seconds", type=float, default=0.0)
    parser.add_argument("--loaders", type=int, default=0)
    parser.add_argument("--several", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.several:
        return several_processes(arguments.folder)
    run(arguments.folder, arguments.steps, arguments.step_seconds, loaders=arguments.loaders)


if __name__ == "__main__":
    main()
