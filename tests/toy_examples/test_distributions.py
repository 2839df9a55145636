"""The six toy targets: their samples, and their exact densities."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowprior.errors import UserError
from toy_examples.distributions import DISTRIBUTIONS, distribution

NAMES = list(DISTRIBUTIONS)


def on_grid(name: str, half_width: float = 4.0, side: int = 401) -> tuple[torch.Tensor, float]:
    """Density on a square grid around the samples' centre, and the area of a cell."""
    target = distribution(name)
    centre = target.sample(20_000, torch.Generator().manual_seed(0)).double().mean(0)
    line = torch.linspace(-half_width, half_width, side, dtype=torch.float64)
    density = target.log_density(torch.cartesian_prod(line, line) + centre).exp()
    return density, (line[1] - line[0]).item() ** 2


@pytest.mark.parametrize("name", NAMES)
def test_the_density_integrates_to_one(name: str) -> None:
    density, cell = on_grid(name)
    assert density.sum().item() * cell == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_the_density_agrees_with_a_histogram_of_a_million_samples(name: str) -> None:
    target = distribution(name)
    samples = target.sample(1_000_000, torch.Generator().manual_seed(1)).double().numpy()
    edges = np.linspace(-3, 3, 121)
    counts, _, _ = np.histogram2d(samples[:, 0], samples[:, 1], bins=[edges, edges])
    width = edges[1] - edges[0]
    corners = torch.cartesian_prod(torch.from_numpy(edges[:-1]), torch.from_numpy(edges[:-1]))
    dense = target.log_density(corners + width / 2).exp() * width**2 * len(samples) > 150
    offsets = torch.from_numpy((np.arange(5) + 0.5) / 5 * width)  # a cell's mean density, by a 5 x 5 midpoint rule
    inside = corners[dense][:, None] + torch.cartesian_prod(offsets, offsets)
    density = target.log_density(inside.flatten(0, 1)).exp().view(inside.shape[:2]).mean(1)
    expected = (density * width**2 * len(samples)).numpy()
    assert len(expected) > 100
    z = (counts.reshape(-1)[dense.numpy()] - expected) / np.sqrt(expected)
    assert abs(z.mean()) < 0.25 and 0.8 < z.std() < 1.25, (z.mean(), z.std())


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_overall_standard_deviation_one(name: str) -> None:
    samples = distribution(name).sample(400_000, torch.Generator().manual_seed(2))
    assert samples.dtype == torch.float32 and samples.shape == (400_000, 2)
    # the overall deviation is about the mean of all numbers, of both coordinates together
    assert samples.double().std().item() == pytest.approx(1.0, abs=5e-3)


def test_samples_are_a_function_of_the_generator() -> None:
    first, again = (distribution("moons").sample(100, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_an_unknown_distribution_is_refused_with_the_six_names() -> None:
    with pytest.raises(UserError) as refused:
        distribution("circle")
    assert all(name in str(refused.value) for name in NAMES)
