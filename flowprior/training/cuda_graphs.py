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

from flowprior.errors import UserError, one_line
from flowprior.notes import note

# Before a capture, for libraries that choose an algorithm or allocate a workspace in their first calls.
WARM_UP_CALLS = 3
# Of one module. Each keeps activations and gradients in memory of its own.
MOST_RECORDINGS = 16


class Recording:
    """A module's forward pass and its gradients as two CUDA graphs, for inputs of given shapes.

    Args:
        module: it returns a tensor, or a tuple of tensors, each of which gradients reach. Its parameters must stay where they lie.
        inputs: tensors on a GPU; the recording keeps room of its own for them.
        trained: the module's parameters that require gradients, by name.

    Raises:
        UserError: CUDA refuses to record.
    """

    def __init__(self, module: nn.Module, inputs: tuple[Tensor, ...], trained: dict[str, nn.Parameter]) -> None:
        self.module, self.passes = module, 0
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in inputs]
        # The same memory under other names. The autograd graph of a recording stays, and what accumulates gradients into the leaves of a graph
        # belongs to the stream on which the graph was made.
        aliases = {name: p.detach().requires_grad_() for name, p in trained.items()}
        self.aliases, self.reached = aliases, [*(x for x in self.inputs if x.requires_grad), *aliases.values()]
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
        self.returns_tuple = isinstance(outputs, tuple)
        self.outputs = outputs if self.returns_tuple else (outputs,)

    def _differentiate(self) -> None:
        # As the training loop does it, without autocast. Retained, since an objective may go backward through a part twice.
        with torch.autocast(self.inputs[0].device.type, enabled=False):
            self.gradients = torch.autograd.grad(
                self.outputs, self.reached, self.output_gradients, retain_graph=True, allow_unused=True
            )

    def _record(self) -> None:
        device = self.inputs[0].device
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        random_state = torch.cuda.get_rng_state(device)  # dropout draws what it would without a recording
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        # Weights that autocast has cast must not outlive the recording, in whose memory they lie.
        with torch.autocast("cuda", dtype, enabled, cache_enabled=False):
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_CALLS):
                    self._run()
                    self.output_gradients = [torch.zeros_like(output) for output in self.outputs]
                    self._differentiate()
            torch.cuda.current_stream(device).wait_stream(stream)
            try:
                self._capture(stream)
            except RuntimeError as error:
                raise UserError(
                    f"CUDA did not record a graph ({one_line(error)}): write train.cuda_graphs=false"
                ) from error
        torch.cuda.set_rng_state(random_state, device)

    def _capture(self, stream: torch.cuda.Stream) -> None:
        pool = torch.cuda.graph_pool_handle()
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # The pinning threads of data loaders may go on meanwhile.
        with torch.cuda.graph(self.forward_graph, pool, stream, capture_error_mode="thread_local"):
            self._run()
        with torch.cuda.graph(self.backward_graph, pool, stream, capture_error_mode="thread_local"):
            self._differentiate()

    def _replay_forward(self) -> None:
        self.forward_graph.replay()

    def _replay_backward(self) -> None:
        self.backward_graph.replay()


class GraphedParts:
    """Has the parts of an objective replayed from CUDA graphs while a training step goes forward and backward.

    The modules within name what is replayed in a property ``replayed_parts``: modules that are functions of tensors, look at no value on the CPU, and
    return tensors that gradients reach. A part is recorded at its first call with inputs of given shapes. It is called as usual with an argument that
    is no tensor, while no gradient is recorded, with shapes that the same pass has brought before, and with further shapes once it has
    ``MOST_RECORDINGS``. Gradients of gradients cannot be taken through a replayed part.

    Nothing is replayed of an objective in which a network computes its activations twice; a note says so.

    Args:
        objective: on its device.
        record: what makes a recording.
    """

    def __init__(self, objective: nn.Module, record: type[Recording] = Recording) -> None:
        self.parts: list[_Part] = []
        if any(getattr(module, "recompute", False) for module in objective.modules()):
            note("train.cuda_graphs: activation checkpointing is on, and nothing is replayed")
            return
        named = dict.fromkeys(part for m in objective.modules() for part in getattr(m, "replayed_parts", ()))
        within = {module for part in named for module in part.modules() if module is not part}
        self.parts = [_Part(part, record) for part in named if part not in within]

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Within, for a forward and a backward pass, the parts are replayed; outside, modules are what they were.

        Raises:
            UserError: CUDA refuses to record a part.
            RuntimeError: gradients are asked for of a pass that a later one has overwritten.
        """
        for part in self.parts:
            part.begin()
        try:
            yield
        finally:
            for part in self.parts:
                part.end()


class _Part:
    """What stands in for a module's forward: a recording for every combination of shapes, types and modes that it has met."""

    def __init__(self, module: nn.Module, record: type[Recording]) -> None:
        self.module, self.record, self.function = module, record, module.forward
        self.parameters, self.modules = dict(module.named_parameters()), list(module.modules())
        self.recordings: dict[tuple[object, ...], Recording] = {}
        self.in_this_pass: set[tuple[object, ...]] = set()
        self.is_recording = False
        self.places: list[tuple[int, bool]] = []

    def begin(self) -> None:
        """Stand in; what was recorded of parameters that have moved or been frozen since is forgotten."""
        places = [(p.data_ptr(), p.requires_grad) for p in self.parameters.values()]
        if places != self.places:
            self.places = places
            self.recordings.clear()
            self.trained = {name: p for name, p in self.parameters.items() if p.requires_grad}
        self.modes = tuple(module.training for module in self.modules)
        self.instead_of = vars(self.module).get("forward")
        self.module.forward = self

    def end(self) -> None:
        """Stand back."""
        if self.instead_of is None:
            del self.module.forward  # which hid the class's own
        else:
            self.module.forward = self.instead_of
        self.in_this_pass.clear()

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if self.is_recording or named or not self._can_replay(inputs):
            return self.function(*inputs, **named)
        device = inputs[0].device.type
        autocast = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        key = (*((x.shape, x.dtype, x.requires_grad) for x in inputs), autocast, self.modes)
        if key in self.in_this_pass:  # a second replay would overwrite what the first one's gradients are made of
            return self.function(*inputs)
        if key not in self.recordings:
            if len(self.recordings) == MOST_RECORDINGS:
                note(
                    f"train.cuda_graphs: a {type(self.module).__name__} has met more than {MOST_RECORDINGS} shapes, and further ones are not replayed"
                )
                return self.function(*inputs)
            self.is_recording = True
            try:
                self.recordings[key] = self.record(self.module, inputs, self.trained)
            finally:
                self.is_recording = False
        self.in_this_pass.add(key)
        recording = self.recordings[key]
        outputs = _Replay.apply(recording, len(inputs), *inputs, *self.trained.values())
        return outputs if recording.returns_tuple else outputs[0]

    def _can_replay(self, inputs: tuple[Any, ...]) -> bool:
        """Whether gradients are recorded and reach something, and all inputs are tensors of one device."""
        if not torch.is_grad_enabled() or not all(isinstance(x, Tensor) for x in inputs):
            return False
        reached = bool(self.trained) or any(x.requires_grad for x in inputs)
        return reached and len({x.device for x in inputs}) == 1


class _Replay(torch.autograd.Function):
    """A recording as a function that autograd knows: of its inputs, and of the parameters that it reads."""

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
