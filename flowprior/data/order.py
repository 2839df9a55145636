"""Which sample comes when: a pure function of (seed, position), so that resuming needs no replay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from flowprior.training.randomness import stream_seed


class SampleKey(NamedTuple):
    """One sample's place in the order; augmentation is drawn from (seed, epoch, index)."""

    index: int
    epoch: int


def epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of epoch ``epoch`` over ``length`` samples, int64 ``(length,)``."""
    return np.random.default_rng(stream_seed(seed, "order", epoch)).permutation(length)


class MicroBatches(Sampler[list[SampleKey]]):
    """The endless stream of this process's micro-batches, each a list of :class:`SampleKey`.

    Position p of the stream of samples is the sample ``epoch_order(seed, p // length)[p % length]``. Micro-batch m of step s takes
    the part of the global batch that process ``rank`` of ``processes`` owes at that moment; batches run over the ends of epochs,
    so every sample comes once an epoch.

    Args:
        length: samples in the data set.
        seed: of the order.
        size: samples in a micro-batch.
        rank, processes: this process's place.
        start: micro-batches to skip, for a resumed run: ``step * accumulation``.
    """

    def __init__(self, length: int, seed: int, size: int, rank: int = 0, processes: int = 1, start: int = 0) -> None:
        self.length, self.seed, self.size, self.rank, self.processes, self.start = (
            length,
            seed,
            size,
            rank,
            processes,
            start,
        )

    def __iter__(self) -> Iterator[list[SampleKey]]:
        known_epoch, order = -1, np.empty(0, dtype=np.int64)
        micro_batch = self.start
        while True:
            first = (micro_batch * self.processes + self.rank) * self.size
            keys = []
            for position in range(first, first + self.size):
                epoch, place = divmod(position, self.length)
                if epoch != known_epoch:
                    known_epoch, order = epoch, epoch_order(self.seed, epoch, self.length)
                keys.append(SampleKey(int(order[place]), epoch))
            yield keys
            micro_batch += 1
