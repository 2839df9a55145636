"""What is done to a run's process before its command starts: saves that take long, values that are not finite, a disk that fills."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from flowprior.data import image_archive, latent_writer
from flowprior.data.stores import index
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.run import files
from flowprior.run.lock import NAME as LOCK
from flowprior.training import checkpoint, loop
from flowprior.training.objective import StepOutput
from generation.generator import GeneratorObjective
from mar.distillation import HeadDistillation
from soak.processes import Instrument
from tokenizer.losses.adversarial import Adversary
from tokenizer.objective import AutoencoderObjective

OBJECTIVES = {
    "flowhead": FlowMatchingObjective,
    "ae": AutoencoderObjective,
    "mar": GeneratorObjective,
    "simflow": AutoencoderObjective,
    "sit": GeneratorObjective,
    "distil": HeadDistillation,
}


def slow_saves(seconds: float) -> Instrument:
    """Every flush takes so much longer, so that kills fall inside saves."""

    def instrument() -> None:
        flush = files.flush_to_disk

        def slowly(path: Path) -> None:
            time.sleep(seconds)
            flush(path)
            time.sleep(seconds)

        for module in (files, checkpoint, image_archive, index):
            module.flush_to_disk = slowly

    return instrument


def slow_steps(seconds: float) -> Instrument:
    """Every training step takes so much longer."""

    def instrument() -> None:
        step = loop.TrainingLoop.train_step

        def slowly(*arguments: object) -> dict[str, Tensor]:
            time.sleep(seconds)
            return step(*arguments)

        loop.TrainingLoop.train_step = slowly

    return instrument


def no_room_check() -> None:
    """Room is not looked for before a save, so that the disk is full in its midst."""
    for module in (checkpoint, latent_writer, image_archive):
        module.require_room = lambda *arguments: None


class NotFinite(torch.autograd.Function):
    """Passes a value on, with a gradient that is not finite."""

    @staticmethod
    def forward(context: object, value: Tensor, bad: float) -> Tensor:
        context.bad = bad
        return value.clone()

    @staticmethod
    def backward(context: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * context.bad, None


def poison(name: str, where: str, value: float, steps: list[int], rank: int | None = None) -> Instrument:
    """Make the loss, its gradient, or the discriminator's not finite in ``steps``, in one rank or in all.

    Args:
        name: of the stage.
        where: ``loss``, ``gradient``, ``discriminator`` or ``discriminator_gradient``.
        value: NaN or an infinity.
        steps: of training.
        rank: None: every rank.
    """

    def bad(loss: Tensor, step: int, gradient: bool) -> Tensor:
        if step not in steps or (rank is not None and int(os.environ.get("RANK", "0")) != rank):
            return loss
        return NotFinite.apply(loss, value) if gradient else loss * value

    def instrument() -> None:
        if where.startswith("discriminator"):
            terms = Adversary.discriminator_terms

            def poisoned(self: Adversary, real: Tensor, fake: Tensor, random: object) -> dict[str, Tensor]:
                losses = terms(self, real, fake, random)
                return losses | {"discriminator": bad(losses["discriminator"], random.step, where.endswith("gradient"))}

            Adversary.discriminator_terms = poisoned
            return
        forward = OBJECTIVES[name].forward

        def poisoned_forward(self: torch.nn.Module, batch: dict[str, Tensor], random: object) -> StepOutput:
            output = forward(self, batch, random)
            return replace(output, loss=bad(output.loss, random.step, where == "gradient"))

        OBJECTIVES[name].forward = poisoned_forward

    return instrument


def both(*instruments: Instrument) -> Instrument:
    def instrument() -> None:
        for one in instruments:
            one()

    return instrument


def snapshot(folder: Path) -> dict[str, bytes]:
    """Contents by name, of everything but a dead owner's lock."""
    return {
        str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file() and f.name != LOCK
    }


def until(condition: Callable[[], bool], process: object, seconds: float = 30) -> bool:
    """Whether ``condition`` came true while the process ran."""
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.0005)
    return False
