"""The same numbers: loss and gradients on the device against the CPU, in bfloat16 against float32, replayed and compiled against eager."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowprior.training.compilation import compile_parts
from flowprior.training.cuda_graphs import GraphedParts
from flowprior.training.randomness import StepRandom
from scripts.gpu_check.parts import Context
from scripts.gpu_check.subjects import SUBJECTS, Subject

# A relative difference of the whole gradient above these is reported as a disagreement.
FLOAT32_BOUND, BFLOAT16_BOUND = 1e-3, 5e-2


class HostDraws(StepRandom):
    """The CPU's draws on any device: a GPU's generator has a sequence of its own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(seed=0, step=0, device="cpu")
        self.target = device

    def _share(self, everything: Tensor) -> Tensor:
        return super()._share(everything).to(self.target)


def run(context: Context, name: str) -> None:
    """Report how far loss and gradients of the subject ``name`` lie apart."""
    torch.backends.cudnn.allow_tf32 = False  # or float32 convolutions have ten bits
    subject = SUBJECTS[name](context.tiny, torch.device("cpu"), False)
    context.report("size", subject.size)
    if subject.left_out:
        context.report("left_out", subject.left_out)
    host = gradients(subject.objective, subject, torch.device("cpu"))
    on_device = subject if context.device.type == "cpu" else SUBJECTS[name](context.tiny, context.device, False)
    objective = on_device.objective.to(context.device)
    objective.load_state_dict(subject.objective.state_dict())
    float32 = gradients(objective, subject, context.device)
    context.report("float32 on the device against the CPU", difference(float32, host, FLOAT32_BOUND))
    bfloat16 = gradients(objective, subject, context.device, bfloat16=True)
    context.report("bfloat16 autocast against float32", difference(bfloat16, float32, BFLOAT16_BOUND))
    if context.device.type == "cuda":
        for precision, bf16, eager in (("float32", False, float32), ("bfloat16", True, bfloat16)):
            graphs = GraphedParts(objective)
            replayed = gradients(objective, subject, context.device, bf16, graphs.replaying)
            if any(part.recordings for part in graphs.parts):
                bound = BFLOAT16_BOUND if bf16 else FLOAT32_BOUND
                context.report(f"CUDA graphs against eager, {precision}", difference(replayed, eager, bound))
    compile_parts(on_device.model, backward_again=True)
    compiled = gradients(objective, subject, context.device)
    context.report("compiled against eager, float32", difference(compiled, float32, FLOAT32_BOUND))
    compiled = gradients(objective, subject, context.device, bfloat16=True)
    context.report("compiled against eager, bfloat16", difference(compiled, bfloat16, BFLOAT16_BOUND))


def gradients(
    objective: nn.Module,
    subject: Subject,
    device: torch.device,
    bfloat16: bool = False,
    within: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
) -> dict[str, Tensor]:
    """``loss`` and the gradient of every trained parameter by name, in float64 on the CPU; both passes are made ``within``."""
    objective.zero_grad(set_to_none=True)
    batch = {name: value.to(device) for name, value in subject.batch.items()}
    with within():
        with torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext():
            loss = objective(batch, HostDraws(device)).loss
        loss.backward()
    computed = {"loss": loss.detach()}
    computed |= {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    return {name: value.double().cpu() for name, value in computed.items()}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> dict[str, object]:
    """Relative differences: of the loss, of the whole gradient, and of the tensor where it is largest.

    A tensor's is relative to its own norm, or to a thousandth of the whole gradient's where its own is smaller than that.
    """
    if found.keys() != expected.keys():
        raise RuntimeError(f"gradients of other tensors: {sorted(found.keys() ^ expected.keys())[:5]}")
    names = [name for name in expected if name != "loss"]
    whole = torch.stack([expected[name].square().sum() for name in names]).sum().sqrt()
    apart = {name: (found[name] - expected[name]).norm() for name in names}
    relative = {name: float(apart[name] / torch.maximum(expected[name].norm(), whole / 1000)) for name in names}
    worst = max(relative, key=relative.__getitem__)
    of_whole = float(torch.stack(list(apart.values())).square().sum().sqrt() / whole)
    return {
        "loss": float((found["loss"] - expected["loss"]).abs() / expected["loss"].abs()),
        "gradient": of_whole,
        "largest": {"tensor": worst, "difference": relative[worst]},
        "agree": of_whole < bound,
    }
