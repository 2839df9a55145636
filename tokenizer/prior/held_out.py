"""Which rows of a target the flow prior is trained on, and which it is measured on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flowprior.errors import UserError
from flowprior.training.randomness import stream_seed


class RowSplit(NamedTuple):
    """Rows of a target, int64 and ascending; both are None where nothing is held out."""

    train: Tensor | None
    held_out: Tensor | None

    def draw_train(self, count: int, total: int, generator: torch.Generator) -> Tensor:
        """``count`` different training rows of a target of ``total`` rows, or all of fewer, in random order."""
        rows = torch.randperm(total if self.train is None else len(self.train), generator=generator)[:count]
        return rows if self.train is None else self.train[rows]


def split_rows(count: int, share: float, seed: int, rows_per_sample: int = 1) -> RowSplit:
    """Hold out ``share`` of ``count`` rows, in whole samples of ``rows_per_sample`` neighbouring rows.

    Raises:
        UserError: there are too few samples to hold any out.
    """
    if not share:
        return RowSplit(None, None)
    samples = -(-count // rows_per_sample)
    held_out = max(1, round(share * samples))
    if held_out >= samples or count - held_out * rows_per_sample < 2:
        raise UserError(f"held_out={share} of {samples} samples leaves none to train on: write held_out=0")
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(stream_seed(seed, "held-out rows")))
    chosen = torch.zeros(samples, dtype=torch.bool)
    chosen[order[:held_out]] = True
    chosen = chosen.repeat_interleave(rows_per_sample)[:count]
    return RowSplit(torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten())
