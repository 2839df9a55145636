"""How strongly a loss pulls at a tensor, over all processes: for adaptive weights, and to be logged."""

from __future__ import annotations

import torch
from torch import Tensor

from flowprior.distributed import World


def shared_gradient_norm(loss: Tensor, parameter: Tensor, world: World) -> Tensor:
    """Norm of the gradient of ``loss``, averaged over the processes, at a ``parameter`` that they share; the graph stays."""
    [gradient] = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    if gradient is None:
        return loss.new_zeros(())
    return (world.all_reduce(gradient.detach().float().clone()) / world.size).norm()


def sample_gradient_norm(loss: Tensor, samples: Tensor, world: World, micro_batches: int = 1) -> Tensor:
    """Norm of the gradient of ``loss``, averaged over the processes, at ``samples`` of which each process has its own; the graph stays.

    Of a step of several micro-batches each sees a part of the samples: the mean of what they return is the step's norm where their norms are equal.
    """
    [gradient] = torch.autograd.grad(loss, samples, retain_graph=True, allow_unused=True)
    square = loss.new_zeros(()) if gradient is None else gradient.detach().float().square().sum()
    return world.all_reduce(square.clone()).sqrt() / (world.size * micro_batches**0.5)


def adaptive_weight(anchor: Tensor, term: Tensor, parameter: Tensor, world: World, largest: float = 1e4) -> Tensor:
    """Factor that makes ``term`` pull at ``parameter`` as strongly as ``anchor`` (Esser et al. 2021, arXiv 2012.09841, Eq. 7)."""
    pulls = (shared_gradient_norm(loss, parameter, world) for loss in (anchor, term))
    return (next(pulls) / (next(pulls) + 1e-4)).clamp(0.0, largest)
