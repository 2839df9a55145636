"""From a data set that answers whole lists of keys to the stream of batches that the training loop takes."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowprior.data.order import MicroBatches, SampleKey
from flowprior.training.distributed import Workers
from flowprior.training.loop import TrainConfig


class KeyedDataset(Protocol):
    """A data set read by lists of keys: ``batch`` returns tensors whose first dimension is the keys'."""

    def __len__(self) -> int: ...

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]: ...


class _ByKeys(Dataset):
    def __init__(self, source: KeyedDataset) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        return self.source.batch(keys)

    def __getitem__(self, key: SampleKey) -> dict[str, Tensor]:
        return self.source.batch([key])


def _as_it_is(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return batch


def _quiet_worker(worker: int) -> None:
    """One thread, and deaf to Ctrl-C and SIGTERM: the training process still wants the batch with which its last step is made."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def training_batches(
    source: KeyedDataset, config: TrainConfig, workers: Workers, start_step: int = 0
) -> Iterable[dict[str, Tensor]]:
    """Endless micro-batches of ``source`` for this process, from step ``start_step`` on."""
    keys = MicroBatches(
        len(source),
        config.seed,
        config.micro_batch(workers.count),
        workers.rank,
        workers.count,
        start_step * config.accumulation,
    )
    return DataLoader(
        _ByKeys(source),
        batch_sampler=keys,
        num_workers=config.workers,
        collate_fn=_as_it_is,
        worker_init_fn=_quiet_worker,
        pin_memory=workers.device.type == "cuda",
        persistent_workers=config.workers > 0,
    )


def ordered_batches(
    source: KeyedDataset, size: int, start: int = 0, end: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """The samples ``start`` to ``end`` in their own order and without augmentation (epoch -1), each once."""
    end = len(source) if end is None else min(end, len(source))
    for first in range(start, end, size):
        yield source.batch([SampleKey(index, -1) for index in range(first, min(first + size, end))])
