"""Reading an optimiser's state back."""

from __future__ import annotations

from typing import Any

import torch


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put ``state`` into ``optimizer``; a ``ValueError`` for moments that are not of their parameters' shapes, which torch accepts."""
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if not isinstance(value, torch.Tensor) or value.shape not in (parameter.shape, torch.Size(())):
                raise ValueError(f"the optimiser's '{name}' is not of its parameter's shape {tuple(parameter.shape)}")
