"""What the training loop trains: an objective, and what it makes of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flowprior.training.randomness import StepRandom

if TYPE_CHECKING:
    from flowprior.training.checkpoint import Stateful


@dataclass
class StepOutput:
    """What an objective makes of a micro-batch, and the loop of a step.

    Attributes:
        loss: scalar; what is minimised.
        terms: scalars to log beside it, by name.
        samples: for auxiliary networks, by name, tensors with a row for each of the batch's samples.
    """

    loss: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)

    @property
    def scalars(self) -> dict[str, Tensor]:
        """The loss and the terms."""
        return {"loss": self.loss, **self.terms}

    def detached(self) -> StepOutput:
        """The same values without their graph."""
        terms, samples = ({name: value.detach() for name, value in part.items()} for part in (self.terms, self.samples))
        return StepOutput(self.loss.detach(), terms, samples)

    @classmethod
    def of_step(cls, micro_batches: Sequence[StepOutput]) -> StepOutput:
        """The mean of the micro-batches' scalars, and all rows of their samples, one micro-batch after the other."""
        sums: dict[str, Tensor] = {}
        rows: dict[str, list[Tensor]] = {}
        for output in micro_batches:
            for name, value in output.scalars.items():
                sums[name] = sums.get(name, 0) + value / len(micro_batches)
            for name, value in output.samples.items():
                rows.setdefault(name, []).append(value)
        samples = {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in rows.items()}
        return cls(sums.pop("loss"), sums, samples)


class Objective(nn.Module, ABC):
    """A module whose forward is the loss of a batch. It may hold auxiliary networks, which have optimisers of their own.

    ``backward_again`` is True where the forward pass asks for gradients itself, see
    :func:`~flowprior.training.compilation.compile_parts`.
    """

    backward_again = False

    @abstractmethod
    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        """The loss of ``batch`` under the noise of ``random``."""

    def train_auxiliary(
        self, output: StepOutput, step: int, autocast: AbstractContextManager[None]
    ) -> dict[str, Tensor]:
        """One step of the auxiliary networks, after the backward pass and before the model's weights move.

        Args:
            output: of the whole step, detached; its samples are this process's.
            step: of training, from 0.
            autocast: what the loop's own forward passes run under.

        Returns:
            Metrics to log.

        Raises:
            NonFiniteLoss: in all processes; the model keeps still as well.
        """
        return {}

    def auxiliary_state(self) -> dict[str, Stateful]:
        """What a resumed run needs of the auxiliary networks, by the names that it has in a checkpoint."""
        return {}
