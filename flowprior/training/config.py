"""How long a run trains, on what batches, in which precision, and how often things happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowprior.errors import UserError
from flowprior.run.config import option


@dataclass
class TrainConfig:
    """Length, batch, precision, and how often things happen."""

    steps: int = option(1000, "optimiser steps")
    global_batch: int = option(64, "samples per step, over all processes and accumulated micro-batches")
    accumulation: int = option(1, "micro-batches per step in every process")
    seed: int = option(0, "seed of weights, data order, augmentation and noise")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "auto: bfloat16 autocast on a GPU, float32 on a CPU"
    )
    compile: bool = option(
        False, "torch.compile the model, which takes the first steps up to minutes", changes_result=False
    )
    loader_workers: int = option(0, "processes that load data, per rank", changes_result=False, formerly="workers")
    log_steps: int = option(20, "write metrics every so many steps", changes_result=False)
    eval_steps: int = option(500, "evaluate every so many steps; 0: at the end only")
    checkpoint_steps: int = option(500, "save every so many steps; 0: at the end only", changes_result=False)
    keep_checkpoints: int = option(2, "how many checkpoints stay", changes_result=False)
    tensorboard: bool = option(True, "write TensorBoard files as well", changes_result=False)
    non_finite_steps: int = option(
        3,
        "so many steps in a row with a loss or gradient that is NaN or infinite end the run; fewer are skipped",
        changes_result=False,
    )

    def __post_init__(self) -> None:
        if min(self.steps, self.global_batch, self.accumulation, self.log_steps, self.keep_checkpoints) < 1:
            raise ValueError("steps, global_batch, accumulation, log_steps and keep_checkpoints are at least 1")
        if self.non_finite_steps < 1:
            raise ValueError("non_finite_steps is at least 1, which ends the run at the first of them")
        if min(self.eval_steps, self.checkpoint_steps, self.loader_workers) < 0:
            raise ValueError("eval_steps, checkpoint_steps and loader_workers cannot be negative")

    def uses_bf16(self, device: torch.device) -> bool:
        """Whether forward passes run under bfloat16 autocast."""
        return self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")

    def micro_batch(self, processes: int) -> int:
        """Samples per forward pass; a UserError when the global batch does not divide."""
        slots = processes * self.accumulation
        if self.global_batch % slots:
            raise UserError(
                f"global_batch {self.global_batch} does not divide into {processes} processes x {self.accumulation} micro-batches: "
                f"write a multiple of {slots}"
            )
        return self.global_batch // slots
