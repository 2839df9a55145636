"""Steps whose loss or gradient is NaN or infinite in some process: they are skipped in all, counted, and too many in a row end the run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowprior.distributed import World
from flowprior.errors import NonFiniteLoss
from flowprior.notes import note


class SkippedSteps:
    """How many steps were skipped; a part of the checkpoint.

    Args:
        most: so many in a row end the run.
    """

    def __init__(self, most: int) -> None:
        self.most, self.total, self.in_a_row = most, 0, 0

    def add(self, step: int, problem: str, tell: bool) -> None:
        """Count step ``step``, and tell of it on stderr.

        Raises:
            NonFiniteLoss: it is the last of too many in a row.
        """
        self.total += 1
        self.in_a_row += 1
        message = f"step {step} is not finite ({problem})"
        if self.in_a_row >= self.most:
            raise NonFiniteLoss(message if self.most == 1 else f"{message}, nor were the {self.most - 1} before it")
        if tell:
            note(f"{message}: skipped")

    def state_dict(self) -> dict[str, Tensor]:
        return {"total": torch.tensor(self.total), "in_a_row": torch.tensor(self.in_a_row)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.total, self.in_a_row = int(state["total"]), int(state["in_a_row"])


def what_is_not_finite(terms: dict[str, Tensor], objective: nn.Module, world: World) -> str:
    """Which of the loss's terms, or else of the gradients in ``objective``, are not finite, and in which processes.

    Every process calls this. Gradients are sums over all processes, so of those alone nobody can tell whose they are.
    """
    own = [name for name, value in terms.items() if "/" not in name and not torch.isfinite(value).all()]
    own = own or [
        f"gradient of {name}"
        for name, parameter in objective.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad).all()
    ]
    reported = [(rank, names[:4]) for rank, names in enumerate(world.all_gather(own)) if names]
    with_terms = [(rank, names) for rank, names in reported if not names[0].startswith("gradient of ")]
    text = "; ".join(f"process {rank}: {', '.join(names)}" for rank, names in with_terms or reported)
    return text or "the gradient's norm is too large for a number"
