"""A network's forward and backward pass, each recorded as a CUDA graph: one launch in place of one for every kernel.

A small network's step is bound by Python, which launches kernels more slowly than a GPU runs them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from flowprior.errors import UserError

# Before a capture, for libraries that choose an algorithm or allocate a workspace in their first calls.
WARM_UP_CALLS = 3


class Recording:
    """A module's forward pass and its gradients as two CUDA graphs, for inputs of some shapes.

    Args:
        module: it returns a tensor, or a tuple of tensors, that gradients reach. Its parameters must stay where they lie.
        inputs: tensors on a GPU; the recording keeps room of its own for them.
        trained: the module's parameters that require gradients, by name.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], trained: dict[str, nn.Parameter]) -> None:
        self.module, self.passes = module, 0
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        # The same memory under other names: what is recorded keeps its autograd graph, and with it what accumulates gradients, on another stream.
        self.aliases = {name: p.detach().requires_grad_() for name, p in trained.items()}
        self.reached = [*(x for x in self.inputs if x.requires_grad), *self.aliases.values()]
        self._record()

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """New outputs; what :meth:`backward` reads is that of the latest call."""
        for kept, given in zip(self.inputs, inputs):
            kept.detach().copy_(given)
        self.passes += 1
        self._replay_forward()
        return tuple(output.detach().clone() for output in self.outputs)

    def backward(self, gradients: tuple[Tensor, ...]) -> list[Tensor | None]:
        """From the outputs' gradients to new ones of the inputs and then of the parameters; None where there is none."""
        for kept, given in zip(self.output_gradients, gradients):
            kept.copy_(given)
        self._replay_backward()
        found = iter(torch._foreach_mul([g for g in self.gradients if g is not None], 1.0))  # copies, in one launch
        copies = iter([None if g is None else next(found) for g in self.gradients])
        of_inputs = [next(copies) if x.requires_grad else None for x in self.inputs]
        return [*of_inputs, *copies]

    def _run(self) -> None:
        outputs = functional_call(self.module, self.aliases, tuple(self.inputs))
        self.many = isinstance(outputs, tuple)
        self.outputs = outputs if self.many else (outputs,)

    def _differentiate(self) -> None:
        # Retained: an objective may go backward through a part twice.
        self.gradients = torch.autograd.grad(
            self.outputs, self.reached, self.output_gradients, retain_graph=True, allow_unused=True
        )

    def _record(self) -> None:
        device = self.inputs[0].device
        random_state = torch.cuda.get_rng_state(device)  # dropout draws what it would without a recording
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        # Weights that autocast has cast must not outlive the recording, in whose memory they lie.
        with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    self._run()
                    self.output_gradients = [torch.zeros_like(output) for output in self.outputs]
                    self._differentiate()
            torch.cuda.current_stream(device).wait_stream(stream)
            pool = torch.cuda.graph_pool_handle()
            self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            # The pinning threads of data loaders may go on meanwhile.
            with torch.cuda.graph(self.forward_graph, pool=pool, capture_error_mode="thread_local"):
                self._run()
            with torch.cuda.graph(self.backward_graph, pool=pool, capture_error_mode="thread_local"):
                self._differentiate()
        torch.cuda.set_rng_state(random_state, device)

    def _replay_forward(self) -> None:
        self.forward_graph.replay()

    def _replay_backward(self) -> None:
        self.backward_graph.replay()


class GraphedParts:
    """Has the parts of an objective replayed from CUDA graphs while a training step goes forward and backward.

    The modules within name what is replayed in a property ``replayed_parts``: modules that are functions of tensors and look at no value on the
    CPU. A part is recorded at its first call with inputs of some shapes. It is called as usual with an argument that is no tensor, while no gradient
    is recorded, and with shapes that the same pass has brought before.

    Args:
        objective: on its device.
        record: what makes a recording.

    Raises:
        UserError: a network computes its activations twice, which cannot be replayed.
    """

    def __init__(self, objective: nn.Module, record: type[Recording] = Recording) -> None:
        if any(getattr(module, "recompute", False) for module in objective.modules()):
            raise UserError(
                "train.cuda_graphs=true cannot replay activation checkpointing: write train.cuda_graphs=false, or switch model.checkpoint_blocks "
                "(model.tarflow.checkpoint_layers) off"
            )
        named = [part for module in objective.modules() for part in getattr(module, "replayed_parts", ())]
        self.parts = [_Part(part, record) for part in dict.fromkeys(named)]

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Within, for a forward and a backward pass, the parts are replayed; outside, modules are what they were."""
        for part in self.parts:
            part.module.forward = part
        try:
            yield
        finally:
            for part in self.parts:
                del part.module.forward  # which hid the class's own
                part.in_this_pass.clear()


class _Part:
    """What stands in for a module's forward: a recording for every kind of inputs that it has met."""

    def __init__(self, module: nn.Module, record: type[Recording]) -> None:
        self.module, self.record, self.function = module, record, module.forward
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.recordings: dict[tuple[object, ...], Recording] = {}
        self.in_this_pass: set[tuple[object, ...]] = set()
        self.is_recording = False

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        usual = named or self.is_recording or not torch.is_grad_enabled()
        if usual or not all(isinstance(x, Tensor) for x in inputs) or not self._is_reached(inputs):
            return self.function(*inputs, **named)
        autocast = torch.is_autocast_enabled(inputs[0].device.type), torch.get_autocast_dtype(inputs[0].device.type)
        kinds = ((x.shape, x.dtype, x.device, x.requires_grad) for x in inputs)
        key = (*kinds, self.module.training, autocast)
        if key in self.in_this_pass:  # a second replay would overwrite what the first one's gradients are made of
            return self.function(*inputs)
        if key not in self.recordings:
            self.is_recording = True
            try:
                self.recordings[key] = self.record(self.module, inputs, self.trained)
            finally:
                self.is_recording = False
        self.in_this_pass.add(key)
        recording = self.recordings[key]
        outputs = _Replay.apply(recording, len(inputs), *inputs, *self.trained.values())
        return outputs if recording.many else outputs[0]

    def _is_reached(self, inputs: tuple[Tensor, ...]) -> bool:
        return bool(self.trained) or any(x.requires_grad for x in inputs)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: Recording, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = recording.forward(tensors[:count])
        ctx.recording, ctx.number = recording, recording.passes
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.recording.passes != ctx.number:
            raise RuntimeError("gradients are asked for of a pass that a later one has overwritten")
        return None, None, *ctx.recording.backward(gradients)
