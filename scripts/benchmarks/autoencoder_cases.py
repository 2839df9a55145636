"""Stage 2's step."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import torch

from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.training.config import build_config, read_preset
from flowprior.training.distributed import Workers
from flowprior.training.loop import TrainingLoop
from scripts.benchmarks.measure import Case
from tokenizer.train_ae import PRESETS, AEConfig, build_objective


def autoencoder_step(level: str, device: torch.device, folder: Path) -> Case:
    """Of the paper's autoencoder on a GPU, of the digits' on a CPU; pixel and alignment losses, since the others need weights of other networks."""
    preset, batch = {"gpu": ("imagenet_qwen", 32), "tiny": ("digits", 4)}.get(level, ("digits", 64))
    config = build_config(AEConfig, read_preset(PRESETS / f"{preset}.yaml", PRESETS))
    config.loss.perceptual_weight = config.loss.adversarial.weight = 0.0
    config.model.encoder.pretrained = False
    config.train = replace(config.train, steps=10**9, global_batch=batch, accumulation=1, log_steps=10**9)
    channels, sizes = config.model.channels, {} if level == "gpu" else {"width": 256, "depth": 3}
    velocity = VelocityMLP(channels, **sizes)
    prior = FlowPrior(velocity, TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, channels)))
    workers = Workers(device=device)
    objective = build_objective(config, None, workers, 10, prior)
    loop = TrainingLoop(objective, objective.autoencoder, config.train, config.optim, workers, progress=False)
    images = torch.randint(0, 256, (batch, 3, config.data.size, config.data.size), dtype=torch.uint8)
    batches = itertools.repeat({"image": images})
    size = f"{batch} images of {config.data.size} px, preset {preset}, pixel and alignment losses"
    return Case(size, "images", batch, {"step": lambda: loop._train_step(batches)})
