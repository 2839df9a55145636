"""The steps since the last line of the log, as the metrics of the next one."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from flowprior.distributed import World
from flowprior.run.reporting import TIMINGS


class StepWindow:
    """Gathers the steps' terms, and the time that went by.

    Args:
        world: this process among those of the run. Terms are means over all of them; the time spent waiting is the longest of any.
        step: the first step in the window.
    """

    def __init__(self, world: World, step: int) -> None:
        self.world = world
        self._open(step)

    def _open(self, step: int) -> None:
        self.terms: list[dict[str, Tensor]] = []
        self.first, self.start, self.waited = step, time.perf_counter(), 0.0

    def add(self, terms: dict[str, Tensor]) -> None:
        """Keep the scalars of a step that was not skipped."""
        self.terms.append({name: value.detach() for name, value in terms.items()})

    def leave_out(self, seconds: float) -> None:
        """Time that is not the steps' own, an evaluation's."""
        self.start += seconds

    def close(self, step: int) -> dict[str, float]:
        """The metrics of the steps up to ``step``, and a new window. All processes call it together.

        Of a term that not every step has (it starts late, or is measured when it is written), the mean over the steps that have it.
        """
        names = dict.fromkeys(name for terms in self.terms for name in terms)
        values = {
            name: torch.stack([terms[name].float().to(self.world.device) for terms in self.terms if name in terms])
            for name in names
        }
        metrics = self.world.all_reduce_mean({name: steps.mean() for name, steps in values.items()})
        elapsed = time.perf_counter() - self.start
        metrics |= dict(
            zip(TIMINGS, ((step - self.first) / elapsed, max(self.world.all_gather(self.waited)) / elapsed))
        )
        self._open(step)
        return metrics
