"""How well a flow has learned a target: its loss on rows that it has not seen, and samples of it against them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.path import PathDraw
from flowprior.flow.solver import sample
from flowprior.metrics.sliced_wasserstein import sliced_wasserstein
from flowprior.training.randomness import stratified_uniform
from tokenizer.prior.held_out import RowSplit
from tokenizer.prior.picture import draw_prior

ROWS = 4096
ROWS_AT_ONCE = 512


class PriorEvaluation:
    """Figures and a picture of a flow against a fixed set of projected target rows.

    Where rows are held out the set is of those, and its metrics are called ``held_out_...``; otherwise it is of training rows, and
    they are called ``training_rows_...``. Sliced Wasserstein distances are between equally large sets, on average over several of them
    where the set is small; the distance of other training rows to the set is the floor, by which samples of the target itself differ.

    Args:
        objective: whose velocity is measured, with its map, pairs and times.
        features: the target, ``(N, d2)``.
        split: its rows.
        folder: of the stage; pictures go into ``pictures/``.
        rows: at most so many in the set; so many samples are drawn.
    """

    def __init__(
        self, objective: FlowMatchingObjective, features: Tensor, split: RowSplit, folder: Path, rows: int = ROWS
    ) -> None:
        self.objective, self.folder = objective, folder
        self.device = objective.target_map.matrix.device
        self.count = rows
        generator = torch.Generator().manual_seed(0)
        if split.held_out is None:
            self.prefix, self.compared_with = "training_rows", "training rows"
            drawn = split.draw_train(2 * rows, len(features), generator)
            reference, others = drawn.tensor_split(2) if len(drawn) > 3 else (drawn, drawn)
        else:
            self.prefix, self.compared_with = "held_out", "held-out rows"
            reference = split.held_out[torch.randperm(len(split.held_out), generator=generator)[:rows]]
            others = split.draw_train(max(rows, len(reference)), len(features), generator)
        self.reference = objective.target_map(features[reference].to(self.device))  # (rows, C)
        self.others = objective.target_map(features[others].to(self.device))
        self.floor = mean_distance(self.others, self.reference)

    @torch.no_grad()
    def __call__(self, step: int) -> dict[str, float]:
        """The metrics of the weights that the objective holds; draws ``pictures/prior_<step>.png``."""
        with torch.autocast(self.device.type, enabled=False):
            samples = self.samples(self.count)
            metrics = {
                "loss": self.loss(),
                **moment_errors(samples, self.reference),
                "sliced_wasserstein": mean_distance(samples, self.reference),
                "sliced_wasserstein_floor": self.floor,
            }
        title = f"step {step}: {self.compared_with} and prior samples"
        file = self.folder / "pictures" / f"prior_{step:08d}.png"
        draw_prior(self.reference.cpu(), samples[: len(self.reference)].cpu(), self.compared_with, title, file)
        return {f"{self.prefix}_{name}": value for name, value in metrics.items()}

    def samples(self, count: int) -> Tensor:
        """``(count, C)`` samples of the flow, from the same noise in every call."""
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (count, self.reference.shape[1])
        return sample(self.objective.velocity, shape, steps=25, generator=generator, device=self.device).float()

    def loss(self) -> float:
        """Eq. 3 on the set, with the training's distribution of times and the same times and noise in every call."""
        generator, pairs = torch.Generator(self.device).manual_seed(0), self.objective.pairs
        count, channels = self.reference.shape
        t = self.objective.times.quantile(stratified_uniform(pairs * count, generator, self.device)).view(pairs, count)
        noise = torch.randn(pairs, count, channels, generator=generator, device=self.device)
        total = 0.0
        for first in range(0, count, ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            data = self.reference[part]  # (n, C)
            loss = flow_matching_loss(self.objective.velocity, data, PathDraw(noise[:, part], t[:, part]))
            total += loss.item() * len(data)
        return total / count


def mean_distance(points: Tensor, reference: Tensor, most: int = 8) -> float:
    """Sliced Wasserstein distance to ``reference`` of as many of ``points``, on average over up to ``most`` sets of them."""
    size = len(reference)
    parts = points[: len(points) // size * size].split(size)[:most] if len(points) > size else [points]
    return sum(sliced_wasserstein(part, reference) for part in parts) / len(parts)


def moment_errors(samples: Tensor, reference: Tensor) -> dict[str, float]:
    """Root-mean-square difference of the means over channels, and ``||cov - cov_ref||_F / ||cov_ref||_F``; both ``(n, C)``."""
    samples, reference = samples.double(), reference.double()
    mean_error = (samples.mean(0) - reference.mean(0)).square().mean().sqrt()
    wanted = reference.T.cov().view(samples.shape[1], -1)  # (C, C)
    covariance_error = (samples.T.cov().view_as(wanted) - wanted).norm() / wanted.norm()
    return {"mean_error": mean_error.item(), "covariance_error": covariance_error.item()}
