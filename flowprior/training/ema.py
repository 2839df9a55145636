"""An exponential moving average of a model's weights, matched by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class EMA:
    """Averages the trained parameters of ``model`` in float32.

    Args:
        model: whose parameters that require gradients are followed.
        decay: reached after a warm-up of ``min(decay, (1 + step) / (10 + step))``, so that short runs forget their first weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        # Kept, since going through all modules in every step takes a tenth of a small model's.
        self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().float().clone() for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the model's weights after step ``step`` (from 0) into the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [weight.float() for weight in self.weights.values()]
        torch._foreach_lerp_(list(self.average.values()), current, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model holds the averaged weights."""
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        with torch.no_grad():
            for name, average in self.average.items():
                self.weights[name].copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in kept.items():
                    self.weights[name].copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in self.average.items()}:
            raise ValueError("the averaged weights in the checkpoint are those of another model")
        for name, average in self.average.items():
            average.copy_(state[name])
