"""The small flows that are trained on the spot: of single tokens by their place, and of all tokens of an image together.

Each starts as the exact flow of a Gaussian with the latents' mean and covariance, so that what a network has to find is the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowprior.distributed import World, best_device
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import PathDraw, draw_path_of_step
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import Section, option
from flowprior.run.files import load_weights
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom, stream_seed


@dataclass
class FlowBudget(Section):
    """What is spent on a flow: figures of two tokenizers compare at one budget."""

    steps: int = option(600, "optimiser steps of each of the two flows", least=1)
    images: int = option(128, "images in a step", least=1)
    width: int = option(256, "hidden width", least=8)
    depth: int = option(3, "residual blocks", least=1)
    lr: float = option(1e-3, "peak learning rate", above=0)
    times: int = option(32, "times of the path that errors are measured at", least=4)


class GaussianVelocity(nn.Module):
    """``E[x1 - x0 | x_t]`` where x1 is Gaussian: the best linear velocity, whatever x1 is.

    Along an axis of variance ``s^2`` its gain is ``(t s^2 - (1 - t)) / ((1 - t)^2 + t^2 s^2)``.

    Args:
        mean: ``(d,)``, or ``(T, d)`` with a Gaussian for each of T places.
        covariance: ``(d, d)`` or ``(T, d, d)``.
    """

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__()
        variances, axes = torch.linalg.eigh(covariance.double())
        self.register_buffer("mean", mean.float())
        self.register_buffer("variances", variances.clamp(min=0).float())
        self.register_buffer("axes", axes.float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``x (..., d)``, and ``t`` that broadcasts against its leading dimensions, to ``(..., d)``."""
        t = t.unsqueeze(-1)
        gain = (t * self.variances - (1 - t)) / ((1 - t) ** 2 + t**2 * self.variances)  # (..., d)
        along = self._turned(x - t * self.mean, self.axes)  # (..., d)
        return self.mean + self._turned(along * gain, self.axes.mT)  # (..., d)

    @staticmethod
    def _turned(x: Tensor, axes: Tensor) -> Tensor:
        return x @ axes if axes.dim() == 2 else torch.einsum("...td,tde->...te", x, axes)


def fitted_gaussian(points: Tensor) -> GaussianVelocity:
    """The velocity of a Gaussian with the mean of ``points (N, d)`` or ``(N, T, d)``, for each of T, and their covariance as Ledoit and Wolf
    (2004) shrink it, so that fewer points than dimensions have one."""
    from sklearn.covariance import ledoit_wolf

    sets = points.double().unsqueeze(1) if points.dim() == 2 else points.double()  # (N, T, d)
    covariances = [torch.from_numpy(ledoit_wolf(part.numpy())[0]) for part in sets.unbind(1)]
    return GaussianVelocity(points.double().mean(0), torch.stack(covariances) if points.dim() == 3 else covariances[0])


class TokenVelocity(nn.Module):
    """The velocity of single tokens, each by its place.

    Args:
        latents: ``(N, T, C)`` that it will be trained on, for the Gaussian of every place.
        budget: for its sizes.
        seed: of its weights.
    """

    def __init__(self, latents: Tensor, budget: FlowBudget, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(stream_seed(seed, "token flow"))
        self.gaussian = fitted_gaussian(latents)
        self.network = VelocityMLP(latents.shape[2], budget.width, budget.depth, generator=generator)
        self.places = nn.Parameter(torch.zeros(latents.shape[1], budget.width))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``x (..., T, C)`` and ``t (..., 1)``, one time per image or ``(1,)`` for all, to ``(..., T, C)``."""
        network = self.network
        # Places join behind the input: in the modulations, each would have one of its own to compute.
        modulations = network.modulations(t)  # each (..., 1, 3 W)
        h = network.input(x) + self.places  # (..., T, W)
        for block, modulation in zip(network.blocks, modulations):
            h = block(h, modulation)  # (..., T, W)
        return self.gaussian(x, t) + network.output(h, modulations[-1])  # (..., T, C)


class ImageVelocity(nn.Module):
    """The velocity of all tokens of an image together; arguments as above."""

    def __init__(self, latents: Tensor, budget: FlowBudget, seed: int) -> None:
        super().__init__()
        vectors = latents.flatten(1)  # (N, T C)
        generator = torch.Generator().manual_seed(stream_seed(seed, "flow of images"))
        self.gaussian = fitted_gaussian(vectors)
        self.network = VelocityMLP(vectors.shape[1], budget.width, budget.depth, generator=generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``x (..., T, C)`` and ``t (..., 1)``, one time per image or ``(1,)`` for all, to ``(..., T, C)``."""
        vectors, t = x.flatten(-2), t.squeeze(-1)  # (..., T C), (...)
        return (self.gaussian(vectors, t) + self.network(vectors, t)).view(x.shape)


class _FlowMatching(Objective):
    """Eq. 3 over latents ``(B, T, C)``, with one time for all tokens of an image."""

    def __init__(self, velocity: nn.Module) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        latents = batch["latents"].to(random.device)  # (B, T, C)
        noise, t = draw_path_of_step(random, latents, group_size=latents.shape[1])
        return StepOutput(flow_matching_loss(self.velocity, latents, PathDraw(noise, t)))


def train_flows(latents: Tensor, budget: FlowBudget, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The flow of single tokens and that of whole images, of normalised ``latents (N, T, C)``; on the CPU.

    Both are functions of the arguments. Of one token per image the two are the same network.
    """
    token = TokenVelocity(latents, budget, seed)
    _train(token, latents, budget, seed, "flow of single tokens")
    if latents.shape[1] == 1:
        return token, token
    together = ImageVelocity(latents, budget, seed)
    _train(together, latents, budget, seed, "flow of whole images")
    return token, together


def _train(velocity: nn.Module, latents: Tensor, budget: FlowBudget, seed: int, description: str) -> None:
    world = World(device=best_device())
    objective = _FlowMatching(velocity).to(world.device)
    size = min(budget.images, len(latents))
    loop = TrainingLoop(
        objective,
        velocity,
        TrainConfig(steps=budget.steps, global_batch=size, seed=seed),
        OptimConfig(lr=budget.lr, warmup_steps=max(1, budget.steps // 20)),
        world,
        description=description,
    )
    with torch.random.fork_rng([world.device] if world.device.type == "cuda" else []):  # the loop seeds the global ones
        loop.run(_random_images(latents, size, seed))
    with loop.averaged_weights():
        weights = {name: value.clone() for name, value in velocity.state_dict().items()}
    load_weights(velocity, weights, description)
    velocity.cpu().requires_grad_(False).eval()


def _random_images(latents: Tensor, count: int, seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(stream_seed(seed, "images of the small flows"))
    while True:
        yield {"latents": latents[torch.randint(len(latents), (count,), generator=generator)]}
