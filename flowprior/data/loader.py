"""From a data set that answers whole lists of keys to the stream of batches that the training loop takes."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from flowprior.data.order import MicroBatches, SampleKey
from flowprior.distributed import World
from flowprior.training.config import TrainConfig


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
    source: KeyedDataset, config: TrainConfig, world: World, start_step: int = 0
) -> Iterable[dict[str, Tensor]]:
    """Endless micro-batches of ``source`` for this process, from step ``start_step`` on.

    A source with a ``device`` other than the CPU, where its data lies already, is read without loader processes; one with ``blocks`` in
    their order.
    """
    on_device = getattr(source, "device", torch.device("cpu")).type != "cpu"
    processes = 0 if on_device else config.loader_workers
    keys = MicroBatches(
        len(source),
        config.seed,
        config.micro_batch(world.size),
        world.rank,
        world.size,
        start_step * config.accumulation,
        getattr(source, "blocks", None),
    )
    return DataLoader(
        _ByKeys(source),
        batch_sampler=keys,
        num_workers=processes,
        collate_fn=_as_it_is,
        worker_init_fn=_quiet_worker,
        pin_memory=world.device.type == "cuda" and not on_device,
        persistent_workers=processes > 0,
    )


def indexed_batches(
    source: KeyedDataset, batches: Sequence[Sequence[int]], processes: int = 0
) -> Iterator[dict[str, Tensor]]:
    """The batches of samples with these indices, without augmentation (epoch -1), read ahead by loader ``processes`` if there are any."""
    keys = ([SampleKey(index, -1) for index in batch] for batch in batches)
    if not processes:
        yield from map(source.batch, keys)
        return
    yield from DataLoader(
        _ByKeys(source),
        batch_sampler=list(keys),
        num_workers=processes,
        collate_fn=_as_it_is,
        worker_init_fn=_quiet_worker,
        generator=torch.Generator(),  # or the loader draws its unused seed from the global one
    )
