"""AdamW with decay groups, or Muon beside it, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from flowprior.run.config import Section, option

if TYPE_CHECKING:
    from flowprior.training.muon import MuonWithAdamW


@dataclass
class AuxiliaryOptimConfig(Section):
    """Optimiser and schedule of a network whose weights are not averaged."""

    lr: float = option(1e-4, "peak learning rate", above=0, below=math.inf)
    betas: tuple[float, float] = option((0.9, 0.95), "decay rates of AdamW's two moments")
    weight_decay: float = option(
        0.0,
        "weight decay of matrices; vectors (biases, norms) never decay, nor what a model exempts",
        least=0,
    )
    warmup_steps: int = option(0, "steps of linear warm-up", least=0)
    schedule: Literal["cosine", "constant"] = option("cosine", "after the warm-up: cosine or constant")
    final_lr_fraction: float = option(0.1, "the cosine ends at this fraction of lr", least=0)
    clip_norm: float = option(1.0, "largest gradient norm; 0 switches clipping off", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas lie in [0, 1), not at {list(self.betas)}")


@dataclass
class OptimConfig(AuxiliaryOptimConfig):
    """Optimiser, schedule and average."""

    name: Literal["adamw", "muon"] = option(
        "adamw", "adamw, or muon: Muon for hidden matrices and AdamW for the rest, which needs PyTorch 2.9"
    )
    ema_decay: float = option(
        0.9999,
        "decay of the averaged weights, with a warm-up for short runs; 0 switches averaging off",
        least=0,
        below=1,
    )


def learning_rate(step: int, total_steps: int, config: AuxiliaryOptimConfig) -> float:
    """The learning rate of step ``step`` (from 0): linear warm-up, then cosine to ``final_lr_fraction`` or constant."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.lr * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def make_optimizer(module: nn.Module, config: AuxiliaryOptimConfig) -> torch.optim.AdamW | MuonWithAdamW:
    """AdamW over the parameters of ``module`` that require gradients, or Muon over its hidden matrices and AdamW over the others.

    Tensors of two dimensions or more decay. Vectors do not, nor what ``module`` or a module within names in a property ``no_decay``, an iterable
    of parameters.

    Raises:
        UserError: Muon is asked for, and this PyTorch has none.
    """
    trained = [p for p in module.parameters() if p.requires_grad]
    exempt = {id(p) for part in module.modules() for p in getattr(part, "no_decay", ())}

    def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
        decays = {id(p) for p in parameters if p.dim() >= 2} - exempt
        both = [
            {"params": [p for p in parameters if id(p) in decays], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if id(p) not in decays], "weight_decay": 0.0},
        ]
        return [group for group in both if group["params"]]

    def adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
        fused = all(p.device.type in ("cuda", "cpu") for p in parameters)
        return torch.optim.AdamW(groups(parameters), lr=config.lr, betas=config.betas, fused=fused)

    if getattr(config, "name", "adamw") == "adamw":
        return adamw(trained)
    from flowprior.training.muon import MuonWithAdamW, hidden_matrices  # which reads its state back by this module

    if not (hidden := hidden_matrices(module)):
        return adamw(trained)
    others = [p for p in trained if id(p) not in {id(matrix) for matrix in hidden}]
    return MuonWithAdamW(groups(hidden), adamw(others) if others else None, config.lr)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put ``state`` into ``optimizer``; a ``ValueError`` for moments that are not of their parameters' shapes, which torch accepts."""
    optimizer.load_state_dict(state)
    if not isinstance(optimizer, torch.optim.Optimizer):  # of several, which it has loaded so one by one
        return
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, torch.Size(())):
                raise ValueError(f"the optimiser's '{name}' is not of its parameter's shape {tuple(parameter.shape)}")
