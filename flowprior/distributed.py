"""One process by default; many under ``torchrun``, with NCCL on GPUs and gloo on CPUs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_distributed
from torch import Tensor

from flowprior.errors import LostProcess, UserError
from flowprior.heap import keep_freed_memory

# For the first process, say, which measures and saves while the others wait.
LONGEST_WAIT = timedelta(hours=2)
SECONDS_TO_LET_GO = 0.1
# What gloo and NCCL say, as plain RuntimeErrors, when the process at the other end of a connection is gone.
PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees them: its ``rank``, their number ``size`` (the world size), and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            torch_distributed.barrier()

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of ``tensor`` over all processes, in place."""
        if self.size > 1:
            torch_distributed.all_reduce(tensor)
        return tensor

    def all_gather_rows(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """All processes' ``rows (n, d)`` at their ``places (n,)`` in one tensor ``(N, d)`` on the CPU, in every process.

        The places of all processes together are 0 to N - 1, each once; a process without rows passes ``(0, 0)``.
        """
        sizes = torch.zeros(self.size, 2, dtype=torch.long, device=self.device)
        sizes[self.rank] = torch.tensor(rows.shape)
        counts, widths = self.all_reduce(sizes).unbind(1)
        whole = torch.zeros(int(counts.sum()), int(widths.max()), dtype=rows.dtype, device=self.device)
        if len(rows):
            whole[places.to(self.device)] = rows.to(self.device)
        return self.all_reduce(whole).cpu()

    def all_reduce_mean(self, values: dict[str, torch.Tensor]) -> dict[str, float]:
        """Scalars averaged over all processes; every process passes the same names."""
        if not values:
            return {}
        stacked = torch.stack([v.detach().float().to(self.device) for v in values.values()])
        return dict(zip(values, (self.all_reduce(stacked) / self.size).tolist()))

    def any(self, *flags: bool | Tensor) -> list[bool]:
        """For each of ``flags`` (booleans, or boolean scalars on the device) whether it holds in any process, at the price of one wait."""
        if self.size == 1:
            return [bool(flag) for flag in flags]
        # A boolean is written by the device itself: a copy of it would make the host wait a second time.
        on_device = [f if isinstance(f, Tensor) else torch.full((), f, device=self.device) for f in flags]
        stacked = torch.stack([flag.to(self.device).float() for flag in on_device])
        return [value > 0 for value in self.all_reduce(stacked).tolist()]

    def broadcast(self, value: Any) -> Any:
        """The first process's ``value`` (plain data), in every process."""
        if self.size == 1:
            return value
        values = [value]
        torch_distributed.broadcast_object_list(values, device=self.device)
        return values[0]

    def all_gather(self, value: Any) -> list[Any]:
        """Every process's ``value`` (plain data) by rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch_distributed.all_gather_object(values, value)
        return values


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def current_world(device: torch.device) -> World:
    """This process among those of the process group that the caller has set up, if any."""
    if not (torch_distributed.is_available() and torch_distributed.is_initialized()):
        return World(device=device)
    return World(torch_distributed.get_rank(), torch_distributed.get_world_size(), device)


@contextlib.contextmanager
def _sigterm_ends_at_once() -> Iterator[None]:
    """Within, SIGTERM ends this process without a handler of Python's, none of which runs while processes wait for each other in the
    library: of one that is gone, the others would hear after :data:`LONGEST_WAIT` only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextlib.contextmanager
def distributed_world() -> Iterator[World]:
    """The :class:`World` of this process, from torchrun's environment; leaves the process group on the way out.

    What a stage's command begins with: on a CPU it also sets the allocator, which a library would leave to its caller.

    Raises:
        UserError: there are fewer GPUs than processes.
        LostProcess: another process ended while this one waited for it.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = best_device()
    if device.type == "cpu":
        keep_freed_memory()
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"this machine has {torch.cuda.device_count()} GPUs: write NPROC={torch.cuda.device_count()}"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    # NCCL is told its device, or a barrier would have to guess it.
    backend, bound = ("nccl", device) if device.type == "cuda" else ("gloo", None)
    with _sigterm_ends_at_once():
        torch_distributed.init_process_group(backend, timeout=LONGEST_WAIT, device_id=bound)
    # NCCL's group is left by all processes at once: one that fails alone would wait in it.
    together = device.type == "cpu"
    try:
        yield World(torch_distributed.get_rank(), size, device)
        together = True
    except RuntimeError as error:
        if not any(sign in str(error) for sign in PEER_IS_GONE):
            raise
        raise LostProcess(
            "another process of the run ended; run the same command again to go on from the last checkpoint"
        ) from error
    finally:
        if together:
            if device.type == "cpu":
                # Gloo's threads let go of their last tensors, which takes the GIL; the group's end waits for the threads and holds it.
                time.sleep(SECONDS_TO_LET_GO)
            torch_distributed.destroy_process_group()
