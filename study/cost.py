"""What a stage costs: arithmetic of its training, counted, and seconds of a few steps on random data of the real shapes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World, best_device
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.files import json_text
from flowprior.training.loop import TrainingLoop
from flowprior.training.objective import Objective
from generation.generator import GeneratorObjective, build_generator
from study.kept import result_options
from study.plan import PlannedStage
from tokenizer.dry_run import opening_flop, openings
from tokenizer.objective import AutoencoderObjective
from tokenizer.train_ae import build_objective

_counted: dict[str, float] = {}  # by stage and options but for the seeds
CLASSES = 10  # their number is no part of the arithmetic
TIMED_STEPS, DRAWN_IMAGES, GUIDED = 3, 32, 1.5
COUNTED_STEPS = 8  # of a generator: MAR masks another number of tokens in every step


@dataclass(frozen=True)
class Pace:
    """Seconds of a training step, of an image that is drawn without guidance, and of one with it."""

    step: float
    plain_image: float = 0.0
    guided_image: float = 0.0

    def seconds(self, config: Any) -> float:
        """Of the stage with this config, without evaluations and the start of its commands."""
        total = self.step * config.train.steps
        if hasattr(config, "sample"):
            plain = sum(cfg == 1 for cfg in config.sample.cfg)
            guided = len(config.sample.cfg) - plain
            total += config.sample.count * (plain * self.plain_image + guided * self.guided_image)
        return total


def count_tflop(stages: list[PlannedStage], name: str, world: World | None = None) -> float:
    """Arithmetic of the whole training of the stage called ``name`` among a cell's, in TFLOP, all terms at their full weight, and an
    alignment's opening in its steps. Cells that differ by their seeds alone are counted once."""
    options = {
        s.name: _without_seeds(result_options(s.config())) for s in stages if s.name in (name, "prior", "autoencoder")
    }
    key = json_text([name, options])
    if key not in _counted:
        _counted[key] = _count_tflop(stages, name, world)
    return _counted[key]


def _without_seeds(options: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_seeds(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if key != "seed"
    }


def _count_tflop(stages: list[PlannedStage], name: str, world: World | None) -> float:
    loop, batch = _loop(stages, name, world or World(device=best_device()))
    steps = COUNTED_STEPS if isinstance(loop.objective, GeneratorObjective) else 1
    _step(loop, batch, 0)  # what is computed once and kept is no part of a step
    # The counter knows no other kernel of attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for back in range(steps):
            _step(loop, batch, back)
    total = counter.get_total_flops() / steps * loop.config.steps
    if isinstance(loop.objective, AutoencoderObjective):  # whose counted step is one behind the opening
        sizes = loop.objective.autoencoder.config
        latents = torch.zeros(loop.config.global_batch, sizes.tokens, sizes.channels, device=loop.world.device)
        for flow in openings(loop.objective):
            total += opening_flop(flow, latents) * min(flow.config.opening_steps, loop.config.steps)
    return total / 1e12


def measure_pace(stages: list[PlannedStage], name: str, world: World | None = None) -> Pace:
    """Of the stage called ``name`` among a cell's, on this device: seconds of the processor on a CPU, of the clock on a GPU."""
    config = next(stage.config() for stage in stages if stage.name == name)
    loop, batch = _loop(stages, name, world or World(device=best_device()), config.train.cuda_graphs)
    for back in range(TIMED_STEPS if loop.world.device.type == "cuda" else 1):  # each may record graphs of its own
        _step(loop, batch, back)
    step = statistics.median(
        _timed(lambda back=back: _step(loop, batch, back), loop.world) for back in range(TIMED_STEPS)
    )
    if not isinstance(loop.objective, GeneratorObjective):
        return Pace(step)
    model, labels = loop.objective.model.eval(), torch.arange(DRAWN_IMAGES, device=loop.world.device) % CLASSES

    @torch.no_grad()
    def draw(cfg: float) -> None:
        model.sample(labels, list(range(DRAWN_IMAGES)), cfg)

    return Pace(step, *(_timed(lambda cfg=cfg: draw(cfg), loop.world) / DRAWN_IMAGES for cfg in (1.0, GUIDED)))


def training_step(
    stages: list[PlannedStage], name: str, world: World, replayed: bool
) -> tuple[Callable[[], None], int]:
    """A step of the stage called ``name`` among a cell's, always the same one, and its number of samples."""
    loop, batch = _loop(stages, name, world, replayed)
    return lambda: _step(loop, batch, 0), loop.config.global_batch


def _loop(
    stages: list[PlannedStage], name: str, world: World, replayed: bool = False
) -> tuple[TrainingLoop, Iterator[dict[str, Tensor]]]:
    """A stage's training with random weights, ``replayed`` from CUDA graphs or not, and one random micro-batch of its shapes again and again."""
    config, prior, sizes = ({s.name: s for s in stages}.get(n) for n in (name, "prior", "autoencoder"))
    config, prior, sizes = (stage and stage.config() for stage in (config, prior, sizes))
    if name == "prior":
        objective, batch = prior_objective(config, world), features(config)
    elif name == "autoencoder":
        objective, batch = autoencoder_objective(config, prior, world), images(config)
    else:
        model = build_generator(config.model, sizes.model.tokens, sizes.model.channels, CLASSES)
        objective = GeneratorObjective(model, LatentNormaliser(sizes.model.channels)).to(world.device)
        batch = latents(config, sizes.model)
    train = replace(config.train, cuda_graphs=replayed)
    return TrainingLoop(objective, objective, train, config.optim, world, progress=False), itertools.repeat(batch)


def prior_objective(config: Any, world: World) -> Objective:
    """Of stage 1, on features that are projected already."""
    velocity = VelocityMLP(config.channels, config.width, config.depth)
    identity = TargetMap(torch.zeros(config.channels), torch.ones(()), torch.eye(config.channels))
    return FlowMatchingObjective(velocity, identity, config.pairs, config.group_size, config.times).to(world.device)


def autoencoder_objective(config: Any, prior: Any | None, world: World) -> Objective:
    """Of stage 2, under a prior of the sizes that stage 1's config ``prior`` asks for."""
    frozen = None
    if prior is not None:
        target_map = TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, prior.channels))
        frozen = FlowPrior(VelocityMLP(prior.channels, prior.width, prior.depth), target_map).to(world.device)
    objective = build_objective(config, None, world, CLASSES, frozen)
    objective.log_steps = 0  # what is measured for the log now and then is no part of a step
    return objective


def features(config: Any) -> dict[str, Tensor]:
    return {"features": torch.randn(config.train.micro_batch(1), config.channels)}


def images(config: Any) -> dict[str, Tensor]:
    shape = (config.train.micro_batch(1), 3, config.data.size, config.data.size)
    return {"image": torch.randint(0, 256, shape, dtype=torch.uint8), "label": torch.arange(shape[0]) % CLASSES}


def latents(config: Any, sizes: Any) -> dict[str, Tensor]:
    shape = (config.train.micro_batch(1), sizes.tokens, sizes.channels)
    return {"latents": torch.randn(shape), "label": torch.arange(shape[0]) % CLASSES}


def _step(loop: TrainingLoop, batches: Iterator[dict[str, Tensor]], back: int) -> None:
    """The step that is ``back`` before the last, or before the first without an opening where training ends within one."""
    last = loop.config.steps - 1
    if isinstance(loop.objective, AutoencoderObjective):
        last = max(last, *(flow.config.opening_steps for flow in openings(loop.objective)), 0)
    loop.step = max(0, last - back)
    loop.train_step(batches)


def _timed(call: Callable[[], None], world: World) -> float:
    gpu = world.device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    call()
    if gpu:
        torch.cuda.synchronize(world.device)
    return clock() - start
