"""A function of tensors that a GPU runs again and again, as one launch instead of one for each of its kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Before a capture, for libraries that choose an algorithm or allocate a workspace in their first calls.
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    output: Tensor


class Replayed:
    """``function`` of tensors on a GPU, recorded as a CUDA graph at the first call with inputs of some shapes and replayed at the next ones.

    It must compute the same of equal shapes, without looking at values on the CPU. On another device, and while gradients are recorded, it is called
    as it is.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.recordings: dict[tuple[object, ...], _Recording] = {}
        self.pool: tuple[int, int] | None = None  # of memory, one for all shapes: no output outlives its replay

    def __call__(self, *inputs: Tensor) -> Tensor:
        device = inputs[0].device
        if device.type != "cuda" or torch.is_grad_enabled():
            return self.function(*inputs)
        key = (*((x.shape, x.dtype) for x in inputs), _autocast(device))
        if key not in self.recordings:
            self.recordings[key] = self._record(inputs)
        recording = self.recordings[key]
        for kept, given in zip(recording.inputs, inputs):
            kept.copy_(given)
        recording.graph.replay()
        return recording.output.clone()  # the next replay writes over it

    def _record(self, inputs: tuple[Tensor, ...]) -> _Recording:
        device = inputs[0].device
        kept = [x.clone() for x in inputs]
        enabled, dtype = _autocast(device)
        # Weights that autocast has cast must not outlive the recording, in whose memory they lie.
        with torch.autocast(device.type, dtype, enabled, cache_enabled=False):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    self.function(*kept)
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            self.pool = self.pool or torch.cuda.graph_pool_handle()
            # The pinning threads of data loaders may go on meanwhile.
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                output = self.function(*kept)
        return _Recording(graph, kept, output)


def _autocast(device: torch.device) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
