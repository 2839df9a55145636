"""Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991) in blocks, so that memory grows with N and not with N^2.

The definition is torch-fidelity's, whose own function computes twice as many distances and keeps thousands of whole rows of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flowprior.distributed import World
from flowprior.errors import UserError

if TYPE_CHECKING:
    from flowprior.metrics.extractors import Extractor
    from flowprior.metrics.image_set import ImageSet

NEIGHBOURHOOD = 3
BLOCK = 2048


def precision_recall(generated: ImageSet, reference: ImageSet, extractor: Extractor | None = None) -> dict[str, float]:
    """Shares of each set inside the other's 3-nearest-neighbour balls; the time is quadratic in the number of images.

    Keys ``precision`` (generated inside real) and ``recall`` (real inside generated), both in [0, 1]; in the features of ``extractor``
    where it is not the sets' own.
    """
    layers = [part.features(extractor).prc for part in (generated, reference)]
    smallest = min(map(len, layers))
    if smallest <= NEIGHBOURHOOD:
        raise UserError(f"precision and recall need at least {NEIGHBOURHOOD + 1} images, got {smallest}")
    inside_real, inside_generated = manifold_members(
        *layers, NEIGHBOURHOOD, generated.world, generated.extractor.device
    )
    return {"precision": inside_real.double().mean().item(), "recall": inside_generated.double().mean().item()}


@torch.no_grad()
def manifold_members(
    first: Tensor,
    second: Tensor,
    neighbours: int = NEIGHBOURHOOD,
    world: World = World(),  # noqa: B008 (immutable)
    device: torch.device | str = "cpu",
    block: int = BLOCK,
) -> tuple[Tensor, Tensor]:
    """Which points of ``first (N, d)`` lie in a ball of ``second (M, d)``, bool ``(N,)``, and the reverse, ``(M,)``.

    A point's ball reaches to its ``neighbours``-th nearest other point of its own set.

    Args:
        first, second: both have more than ``neighbours`` points.
        neighbours: k.
        world: pairs of blocks are dealt out to all processes.
        device: where distances are computed; ``block``^2 of them are held there at once.
        block: points in a block.
    """
    centre = second.mean(dim=0)  # small coordinates lose less in |a|^2 - 2ab + |b|^2
    one, other = (_Blocks(points - centre, block, device) for points in (first, second))
    radii = [ball_radii(points, neighbours, world) for points in (one, other)]
    inside = [torch.zeros(len(points), device=device) for points in (one, other)]
    pairs = [(row, column) for row in range(one.count) for column in range(other.count)]
    for i, j in _share(pairs, world):
        distances, rows, columns = squared_distances(one, i, other, j), one.place(i), other.place(j)
        inside[0][rows] += (distances <= radii[1][columns]).any(dim=1)
        inside[1][columns] += (distances <= radii[0][rows].unsqueeze(1)).any(dim=0)
    members = [world.all_reduce(part.to(world.device)).cpu() > 0 for part in inside]
    return members[0], members[1]


class _Blocks:
    """Points ``(N, d)`` in blocks, with their squared norms."""

    def __init__(self, points: Tensor, size: int, device: torch.device | str) -> None:
        self.points, self.size, self.device = points, size, device
        self.norms = points.square().sum(dim=1).to(device)  # (N,)
        self.count = -(-len(points) // size)

    def __len__(self) -> int:
        return len(self.points)

    def place(self, block: int) -> slice:
        return slice(block * self.size, min((block + 1) * self.size, len(self)))


def squared_distances(one: _Blocks, i: int, other: _Blocks, j: int) -> Tensor:
    """Between the points of block i of ``one`` and those of block j of ``other``, ``(n, m)``."""
    a, b = one.points[one.place(i)].to(one.device), other.points[other.place(j)].to(other.device)
    distances = torch.addmm(other.norms[other.place(j)], a, b.T, alpha=-2)
    return distances.add_(one.norms[one.place(i)].unsqueeze(1)).clamp_(min=0)


def ball_radii(points: _Blocks, neighbours: int, world: World) -> Tensor:
    """The squared distance of each point to its ``neighbours``-th nearest other one, ``(N,)``; every pair of blocks is met once."""
    nearest = torch.full((len(points), neighbours + 1), float("inf"), device=points.device)  # a point is its own first
    pairs = [(row, column) for row in range(points.count) for column in range(row, points.count)]
    for i, j in _share(pairs, world):
        distances = squared_distances(points, i, points, j)
        _keep_nearest(nearest[points.place(i)], distances)
        if i != j:
            _keep_nearest(nearest[points.place(j)], distances.T)
    if world.size > 1:
        everyone = torch.zeros(world.size, *nearest.shape, device=world.device)
        everyone[world.rank] = nearest.nan_to_num(posinf=torch.finfo(nearest.dtype).max)
        nearest = world.all_reduce(everyone).movedim(0, 1).flatten(1).to(points.device)  # (N, processes (k + 1))
    return nearest.kthvalue(neighbours + 1, dim=1).values


def _keep_nearest(nearest: Tensor, distances: Tensor) -> None:
    """Put the smallest of ``distances (n, m)`` among the smallest so far, ``nearest (n, k + 1)``, in place."""
    best = distances.topk(min(nearest.shape[1], distances.shape[1]), dim=1, largest=False).values
    nearest.copy_(torch.cat([nearest, best], dim=1).topk(nearest.shape[1], dim=1, largest=False).values)


def _share(pairs: list[tuple[int, int]], world: World) -> list[tuple[int, int]]:
    return pairs[world.rank :: world.size]
