"""A run that dies and is started again: the same bits under deterministic algorithms, and how far apart without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flowprior.data.images import open_images
from flowprior.data.loader import training_batches
from flowprior.distributed import World
from flowprior.run.config import build_config
from flowprior.run.files import tensors_fingerprint
from flowprior.run.presets import read_preset
from flowprior.training.loop import TrainingLoop
from flowprior.training.randomness import seed_global_generators
from scripts.gpu_check.parts import Context
from scripts.gpu_check.subjects import random_prior
from tokenizer.config import PRESETS, AEConfig
from tokenizer.train_ae import build_objective


class Killed(Exception):
    """Stands for the end of a process: nothing of what the loop holds is kept but its last checkpoint."""


def run(context: Context) -> None:
    """Report, with and without deterministic algorithms, whether a resumed run ends as an uninterrupted one."""
    steps, every, killed_at = (8, 4, 6) if context.tiny else (40, 20, 27)
    context.report(
        "size", f"autoencoder of the digits, {steps} steps, killed in step {killed_at}, checkpoint at {every}"
    )
    for name, deterministic in {"deterministic algorithms": True, "default algorithms": False}.items():
        torch.use_deterministic_algorithms(deterministic)
        folder = context.folder / name.split()[0]
        whole = train(context, folder / "whole", steps, every)
        again = train(context, folder / "again", steps, every)
        try:
            train(context, folder / "resumed", steps, every, killed_at)
        except Killed:
            pass
        resumed = train(context, folder / "resumed", steps, every)
        same = tensors_fingerprint(whole) == tensors_fingerprint(resumed)
        context.report(
            name,
            {
                "resumed equals uninterrupted": same,
                "resumed": apart(resumed, whole),
                "made twice": apart(again, whole),
                **({"agree": same} if deterministic else {}),
            },
        )


def train(context: Context, folder: Path, steps: int, every: int, killed_at: int | None = None) -> dict[str, Tensor]:
    """The weights after ``steps`` steps of the digits' autoencoder, from the last checkpoint in ``folder`` on."""
    config = build_config(AEConfig, read_preset(PRESETS / "digits.yaml", PRESETS))
    config.train = replace(config.train, steps=steps, checkpoint_steps=every, eval_steps=0, tensorboard=False)
    world, images = World(device=context.device), open_images(config.data, config.train.seed)
    seed_global_generators(0, "weights")
    prior = random_prior(config.model.channels, tiny=True)
    objective = build_objective(config, folder, world, images.num_classes, prior)
    folder.mkdir(parents=True, exist_ok=True)
    loop = TrainingLoop(objective, objective.autoencoder, config.train, config.optim, world, folder, progress=False)

    def batches() -> Iterator[dict[str, Tensor]]:
        for step, batch in enumerate(training_batches(images, config.train, world, loop.step), loop.step):
            if step == killed_at:
                raise Killed
            yield batch

    loop.run(batches())
    return {name: value.detach().cpu() for name, value in objective.autoencoder.state_dict().items()}


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative difference of all weights together."""
    squares = [
        ((found[n].double() - v.double()).square().sum(), v.double().square().sum()) for n, v in expected.items()
    ]
    return float((sum(d for d, _ in squares) / sum(s for _, s in squares)).sqrt())
