"""How long a run trains, on what batches, in which precision, and how often things happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from flowprior.errors import UserError
from flowprior.run.config import Section, option


@dataclass
class TrainConfig(Section):
    """Length, batch, precision, and how often things happen."""

    steps: int = option(1000, "optimiser steps", least=1)
    global_batch: int = option(64, "samples per step, over all processes and accumulated micro-batches", least=1)
    accumulation: int = option(1, "micro-batches per step in every process", least=1)
    seed: int = option(0, "seed of weights, data order, augmentation and noise")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "auto: bfloat16 autocast on a GPU, float32 on a CPU"
    )
    compile: bool = option(
        False, "torch.compile the model, which takes the first steps up to minutes", changes_result=False
    )
    cuda_graphs: bool = option(
        False,
        "replay the networks' passes as CUDA graphs, which small networks gain by; it changes nothing on a CPU, nor beside compile",
        changes_result=False,
    )
    loader_workers: int = option(
        0, "processes that load data, per rank", least=0, changes_result=False, formerly="workers"
    )
    log_steps: int = option(20, "write metrics every so many steps", least=1, changes_result=False)
    eval_steps: int = option(500, "evaluate every so many steps; 0: at the end only", least=0)
    checkpoint_steps: int = option(500, "save every so many steps; 0: at the end only", least=0, changes_result=False)
    keep_checkpoints: int = option(2, "how many checkpoints stay", least=1, changes_result=False)
    tensorboard: bool = option(True, "write TensorBoard files as well", changes_result=False)
    non_finite_steps: int = option(
        3,
        "so many steps in a row with a loss or gradient that is NaN or infinite end the run; fewer are skipped",
        least=1,
        changes_result=False,
    )

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
