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


class Blocks(NamedTuple):
    """Parts of the data that are best read one after the other, such as row groups, a few of which are mixed at a time."""

    starts: np.ndarray  # (parts,) int64, the first sample of each; the first is 0
    mixed: int  # parts that are shuffled among themselves

    def held_by(self, block: np.ndarray, length: int) -> np.ndarray:
        """The samples of the parts numbered ``block``, part by part."""
        last = len(self.starts) - 1
        return np.concatenate(
            [np.arange(self.starts[part], length if part == last else self.starts[part + 1]) for part in block]
        )


def epoch_order(seed: int, epoch: int, length: int, blocks: Blocks | None = None) -> np.ndarray:
    """The order of epoch ``epoch`` over ``length`` samples, int64 ``(length,)``: any of all, or with ``blocks`` its parts in any order,
    ``blocks.mixed`` of them at a time shuffled among themselves."""
    random = np.random.default_rng(stream_seed(seed, "order", epoch))
    if blocks is None:
        return random.permutation(length)
    parts = random.permutation(len(blocks.starts))
    several = (parts[first : first + blocks.mixed] for first in range(0, len(parts), blocks.mixed))
    return np.concatenate([random.permutation(blocks.held_by(block, length)) for block in several])


class MicroBatches(Sampler[list[SampleKey]]):
    """The endless stream of this process's micro-batches, each a list of :class:`SampleKey`.

    Position p of the stream of samples is the sample ``epoch_order(seed, p // length, length, blocks)[p % length]``. Micro-batch m of step s takes
    the part of the global batch that process ``rank`` of ``processes`` owes at that moment; batches run over the ends of epochs,
    so every sample comes once an epoch.

    Args:
        length: samples in the data set.
        seed: of the order.
        size: samples in a micro-batch.
        rank, processes: this process's place.
        start: micro-batches to skip, for a resumed run: ``step * accumulation``.
        blocks: of the order, where it has any.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        size: int,
        rank: int = 0,
        processes: int = 1,
        start: int = 0,
        blocks: Blocks | None = None,
    ) -> None:
        self.length, self.seed, self.size, self.blocks = length, seed, size, blocks
        self.rank, self.processes, self.start = rank, processes, start

    def __iter__(self) -> Iterator[list[SampleKey]]:
        known_epoch, order = -1, np.empty(0, dtype=np.int64)
        micro_batch = self.start
        while True:
            first = (micro_batch * self.processes + self.rank) * self.size
            keys = []
            for position in range(first, first + self.size):
                epoch, place = divmod(position, self.length)
                if epoch != known_epoch:
                    known_epoch, order = epoch, epoch_order(self.seed, epoch, self.length, self.blocks)
                keys.append(SampleKey(int(order[place]), epoch))
            yield keys
            micro_batch += 1
