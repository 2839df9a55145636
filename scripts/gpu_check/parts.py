"""The parts of ``bash scripts/gpu_check.sh``, in the order of their worth."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Context:
    """What a part is given.

    Attributes:
        device: to check.
        tiny: toy sizes, for a rehearsal on a CPU.
        folder: empty, of this part alone.
        report: keeps a result under a name at once, so that a part that is stopped loses nothing that it has found.
        begun: what the part has reported in an earlier check that stopped it.
    """

    device: torch.device
    tiny: bool
    folder: Path
    report: Callable[[str, Any], None]
    begun: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One process of the check.

    Attributes:
        module: in ``scripts.gpu_check``, whose ``run(context)`` or ``run(context, argument)`` is called.
        argument: for a module that serves several parts.
        seconds: after which it is stopped.
        alone: its times count, so nothing else runs beside it.
        needs: packages without which it is skipped.
        environment: variables that must be set before Python starts.
        seconds_to_end: that it has from a SIGTERM on, within its time, to end what it has started; 0: it is killed at once.
    """

    module: str
    argument: str = ""
    seconds: int = 60
    alone: bool = True
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    seconds_to_end: int = 0

    def run(self, context: Context) -> None:
        module = importlib.import_module(self.module if "." in self.module else f"scripts.gpu_check.{self.module}")
        module.run(context, self.argument) if self.argument else module.run(context)


def _agreement(subject: str, seconds: int = 75, **options: Any) -> Part:
    return Part("agreement", subject, seconds, alone=False, **options)


def _endurance(subject: str, seconds: int = 75, **options: Any) -> Part:
    return Part("endurance", subject, seconds, alone=False, **options)


PARTS = {
    "numbers of the flow prior": _agreement("flow prior"),
    "numbers of likelihood alignment": _agreement("likelihood alignment"),
    "numbers of distribution alignment": _agreement("distribution alignment"),
    "numbers of the autoencoder": _agreement("autoencoder", 90),
    "numbers of MAR": _agreement("MAR", 90),
    "numbers of SiT": _agreement("SiT", 90),
    "numbers of the normalizing flow": _agreement("normalizing flow", 90),
    "numbers of sampling": Part("sampling_agreement", seconds=60, alone=False),
    # cuBLAS reads its variable when it starts.
    "a killed run": Part(
        "resume", seconds=90, alone=False, needs=("sklearn",), environment={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    ),
    "200 steps of the flow prior": _endurance("flow prior"),
    "200 steps of the autoencoder": _endurance("autoencoder", 90),
    "200 steps of MAR": _endurance("MAR"),
    "200 steps of SiT": _endurance("SiT"),
    "200 steps of the normalizing flow": _endurance("normalizing flow"),
    "autoencoder step": Part("autoencoder_steps", seconds=100),
    "MAR step": Part("mar_steps", seconds=70),
    "flow prior step": Part("flow_steps", seconds=90),
    "MAR sampling": Part("sampling", seconds=130),
    "few-step sampling": Part("few_step_sampling", seconds=130),
    "SiT and normalizing flow steps": Part("generator_steps", seconds=100),
    "digits end to end": Part(
        "digits", seconds=180, needs=("sklearn", "faiss", "torch_fidelity", "torchmetrics", "matplotlib")
    ),
    "small steps": Part("small_steps", seconds=70, needs=("sklearn", "mlxtend")),
    "feeding": Part("feeding", seconds=60, needs=("torch_fidelity",)),
    "study": Part(
        "study_cells",
        seconds=580,
        needs=("sklearn", "mlxtend", "faiss", "torch_fidelity", "torchmetrics"),
        seconds_to_end=20,
    ),
}

# Not run unless they are named: what a failure looks like.
REHEARSAL = {
    "a part that fails": Part("rehearsal", "fails", 30, alone=False),
    "a part that hangs": Part("rehearsal", "hangs", 20, alone=False),
    "a part that runs out of memory": Part("rehearsal", "runs out of memory", 30, alone=False),
}
