"""What a discriminator is."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowprior.precision import full_precision


class Discriminator(nn.Module, ABC):
    """Images ``(B, 3, H, H)`` in [-1, 1] to logits ``(B, n)``, larger for what looks real.

    No layer may mix the images of a batch, so that nothing depends on the number of processes.
    """

    @property
    @abstractmethod
    def trained(self) -> nn.Module:
        """The part with an optimiser of its own, which checkpoints hold."""

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor: ...


@contextlib.contextmanager
def exact_weights(module: nn.Module) -> Iterator[None]:
    """Within, normalised weights are those of float32: a power iteration in bfloat16 would be kept, with its error, in the buffers."""
    with parametrize.cached():
        with full_precision(next(module.parameters()).device):
            for part in module.modules():
                if parametrize.is_parametrized(part):
                    _ = part.weight
        yield
