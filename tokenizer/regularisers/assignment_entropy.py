"""The entropy part of soft quantisers: every token sure of its codewords, all codewords in use."""

from __future__ import annotations

import torch
from torch import Tensor

from flowprior.distributed import World


def entropy_loss(assignment_entropy: Tensor, assignment_mean: Tensor) -> Tensor:
    """``E H(p) - H(E p)``, a mean over the leading dimensions of ``assignment_mean``.

    Args:
        assignment_entropy: mean entropy of the tokens' assignments, nats.
        assignment_mean: ``(..., size)``, the mean assignment.
    """
    # A cold softmax gives codewords a share of exactly 0, whose logarithm has no gradient.
    logarithm = assignment_mean.clamp_min(torch.finfo(assignment_mean.dtype).tiny).log()
    return assignment_entropy + (assignment_mean * logarithm).sum(-1).mean()


def over_processes(local: Tensor, world: World) -> Tensor:
    """The mean of ``local`` over all processes, with the gradient of this process's share; gradients are averaged afterwards, so nothing is lost."""
    if world.size == 1:
        return local
    return local + (world.all_reduce(local.detach().clone()) / world.size - local.detach())
