"""Stage 1's step, the alignment loss that stage 2 adds, and the toys' step."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch

from flowprior.distributed import World
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.path import draw_path
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.time_grid import TimeGrid
from flowprior.flow.velocity import VelocityMLP
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.optim import OptimConfig
from scripts.benchmarks.measure import Case

PAPER = {"channels": 32, "width": 1024, "depth": 6}
TOY = {"channels": 2, "width": 512, "depth": 4}
TINY = {"channels": 2, "width": 16, "depth": 1}
# How many tokens share a time. The toys' small step is hardly faster with sixteen than with eight, which leaves it twice the times.
GROUP_SIZE, TOY_GROUP_SIZE = 16, 8


def flow_prior_step(level: str, device: torch.device, folder: Path) -> Case:
    """Four (t, noise) pairs per feature; a time for each of them, or one for sixteen features."""
    batch, sizes = {"tiny": 32, "quick": 128, "full": 512, "gpu": 4096}[level], TINY if level == "tiny" else PAPER
    with_group = steps(sizes, batch, 4, OptimConfig(), device, compiled=device.type == "cuda")
    variants = {"a time per token": with_group(1), f"a time for {GROUP_SIZE}": with_group(GROUP_SIZE)}
    return Case(_size(sizes, batch, 4), "features", batch, variants)


def toy_step(level: str, device: torch.device, folder: Path) -> Case:
    """The network, the batch and the optimiser of the paper's toys; first in a loop as one writes it, with PyTorch's AdamW as it comes, and the same
    threads and allocator. In full also compiled, where there is a compiler; on a GPU all but the plain loop are."""
    optim = OptimConfig(schedule="constant", clip_norm=0.0, ema_decay=0.0)
    sizes, batch = (TINY, 32) if level == "tiny" else (TOY, 256)
    with_group = steps(sizes, batch, 1, optim, device, compiled=device.type == "cuda")
    grouped = f"a time for {TOY_GROUP_SIZE}"
    variants = {
        "plain PyTorch": _plain_step(sizes, batch, device),
        "a time per token": with_group(1),
        grouped: with_group(TOY_GROUP_SIZE),
    }
    case = Case(_size(sizes, batch, 1), "features", batch, variants)
    if level == "full":
        compiled = steps(sizes, batch, 1, optim, device, compiled=True)(TOY_GROUP_SIZE)
        case.add_if_it_runs(f"{grouped}, compiled", compiled)
    return case


def _size(sizes: dict[str, int], batch: int, pairs: int) -> str:
    return f"{batch} x {pairs} pairs, width {sizes['width']}, depth {sizes['depth']}"


def _plain_step(sizes: dict[str, int], batch: int, device: torch.device) -> Callable[[], object]:
    """Eq. 3 with a time per token, backward, ``torch.optim.AdamW``."""
    network = VelocityMLP(**sizes).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    data = torch.randn(batch, sizes["channels"], device=device)

    def call() -> float:
        noise, t = torch.randn_like(data), torch.rand(batch, device=device)
        x_t = (1 - t[:, None]) * noise + t[:, None] * data
        loss = (network(x_t, t) - (data - noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return call


def steps(
    sizes: dict[str, int],
    batch: int,
    pairs: int,
    optim: OptimConfig,
    device: torch.device,
    compiled: bool = False,
    cuda_graphs: bool = False,
) -> Callable[[int], Callable[[], object]]:
    """The project's own step, given how many tokens share a time."""
    channels = sizes["channels"]
    identity = TargetMap(torch.zeros(channels), torch.ones(()), torch.eye(channels))
    objective = FlowMatchingObjective(VelocityMLP(**sizes), identity, pairs).to(device)
    config = TrainConfig(steps=10**9, global_batch=batch, compile=compiled, cuda_graphs=cuda_graphs)
    loop = TrainingLoop(objective, objective.velocity, config, optim, World(device=device), progress=False)
    batches = itertools.repeat({"features": torch.randn(batch, channels)})

    def step(tokens_per_time: int) -> Callable[[], object]:
        def call() -> object:
            objective.group_size = tokens_per_time
            return loop.train_step(batches)

        return call

    return step


def alignment(level: str, device: torch.device, folder: Path) -> Case:
    """The loss and its gradient to the latents, with modulations anew for every time, or kept for a grid of times."""
    images, tokens, grid = {"tiny": (2, 4, 16), "gpu": (256, 64, 1024)}.get(level, (2, 64, 1024))
    sizes, pairs = TINY if level == "tiny" else PAPER, 4
    channels = sizes["channels"]
    prior = FlowPrior(VelocityMLP(**sizes), TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, channels)))
    prior.to(device)
    latents = torch.randn(images, tokens, channels, device=device, requires_grad=True)
    draw = draw_path(latents, pairs=pairs)

    def gradient(times: TimeGrid | None) -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = prior.alignment_loss(latents, draw, grid=times)
        return torch.autograd.grad(loss, latents)[0]

    gradient(TimeGrid(grid))  # once in many steps
    size = f"{images * tokens} tokens x {pairs} pairs, width {sizes['width']}, depth {sizes['depth']}"
    variants = {"anew": lambda: gradient(None), f"grid of {grid} times": lambda: gradient(TimeGrid(grid))}
    return Case(size, "tokens", images * tokens, variants)
