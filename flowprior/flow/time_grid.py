"""A grid of times for a frozen velocity network, whose modulations are computed once and not anew for every token.

Modulation depends on the time alone, and is most of the network's arithmetic. A network that is not trained any more may keep it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from flowprior.flow.velocity import VelocityMLP


@dataclass(frozen=True)
class TimeGrid:
    """The times ``(k + offset) / count``, k = 0 ... count - 1.

    A uniform time is moved to the grid's time of its stratum ``[k / count, (k + 1) / count)``. Where ``offset`` is itself uniform on [0, 1)
    and independent of the uniform times, each time on the grid is uniform again, so that losses and gradients have the expectation over
    continuous times, exactly, at any ``count``; an offset may serve many steps before it is drawn anew. With a fixed offset their expectation
    is a Riemann sum; 0.5 is the midpoint rule, whose error falls with the square of ``count``.

    Args:
        count: times of the grid.
        offset: in [0, 1).
    """

    count: int
    offset: float = 0.5

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.offset < 1:
            raise ValueError(f"a grid has at least 1 time and an offset in [0, 1), not {self.count} and {self.offset}")

    def strata(self, t: Tensor) -> Tensor:
        """Which stratum each of the times ``t`` in [0, 1] lies in, int64 of the same shape."""
        return (t * self.count).long().clamp_(max=self.count - 1)

    def times(self, strata: Tensor) -> Tensor:
        """The grid's times of ``strata``, float32 of the same shape."""
        return (strata.float() + self.offset) / self.count


class KeptModulations:
    """The modulations of one network at the times of one grid, renewed when anything that they depend on has changed.

    That is the grid, the weights (loaded, stepped, moved or cast) and autocast. Weights are told apart by their storage, which is held so that no
    other takes its address, and by autograd's version counters; these do not see what is written through ``parameter.data``.
    """

    def __init__(self) -> None:
        self._made_from: tuple[object, list[tuple[Tensor, int]]] | None = None
        self._rows: list[Tensor] = []

    def __reduce__(self) -> tuple[type[KeptModulations], tuple[()]]:
        return KeptModulations, ()  # a copy's network has other weights

    @_disable_dynamo  # torch.compiler.disable would import the compiler here, which takes as long as torch itself
    def of(self, network: VelocityMLP, grid: TimeGrid) -> list[Tensor]:
        """``(count, 3 W)`` for each block of ``network`` and ``(count, 2 W)`` for its output layer, without gradients.

        Raises:
            ValueError: the network is trained, and its gradient would be lost.
        """
        weights = list(network.parameters())
        if any(weight.requires_grad for weight in weights):
            raise ValueError("modulations are kept for a frozen network only: call requires_grad_(False) on it")
        setting = (grid, _autocast_dtype(weights[0].device))
        if not self._holds(setting, weights):
            with torch.inference_mode(False), torch.no_grad():
                times = grid.times(torch.arange(grid.count, device=weights[0].device))
                self._rows = network.modulations(times)
            self._made_from = setting, [(weight.detach(), weight._version) for weight in weights]
        return self._rows

    def _holds(self, setting: object, weights: list[nn.Parameter]) -> bool:
        if self._made_from is None or self._made_from[0] != setting or len(self._made_from[1]) != len(weights):
            return False
        return all(
            _place(weight) == _place(kept) and weight._version == version
            for weight, (kept, version) in zip(weights, self._made_from[1])
        )


def _place(weight: Tensor) -> tuple[object, ...]:
    return weight.device, weight.dtype, weight.shape, weight.data_ptr()


def _autocast_dtype(device: torch.device) -> torch.dtype | None:
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)
