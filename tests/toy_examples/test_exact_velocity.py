"""The closed-form velocities against brute force, and against what a velocity has to do: carry noise to data."""

from __future__ import annotations

import math

import pytest
import torch

from flowprior.flow.likelihood import log_prob
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import draw_path
from toy_examples.distributions import DISTRIBUTIONS, distribution
from toy_examples.exact_velocity import exact_velocity

NAMES = list(DISTRIBUTIONS)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_the_velocity_is_the_posterior_mean_over_a_million_samples(name: str, t: float) -> None:
    target = distribution(name)
    data = target.sample(1_000_000, torch.Generator().manual_seed(0)).double()
    x = torch.tensor([[0.3, 0.4], [-0.6, 0.1], [1.0, -0.9], [0.0, 1.3]], dtype=torch.float64)
    # Given x1, x0 = (x - t x1) / (1 - t): self-normalised importance sampling over the data
    noise = (x[:, None] - t * data) / (1 - t)  # (4, M, 2)
    weights = (-noise.square().sum(-1) / 2).softmax(-1).unsqueeze(-1)  # (4, M, 1)
    wanted = (weights * (data - noise)).sum(1)
    spread = (weights.square() * (data - noise - wanted[:, None]).square()).sum(1).sqrt()
    found = exact_velocity(target)(x, torch.tensor(t))
    assert ((found - wanted).abs() < 5 * spread + 1e-6).all(), (found, wanted, spread)


@pytest.mark.parametrize("name", NAMES)
def test_the_flow_of_the_exact_velocity_has_the_exact_density(name: str) -> None:
    target = distribution(name)
    points = target.sample(40, torch.Generator().manual_seed(1)).double()
    found = log_prob(exact_velocity(target), points, rtol=1e-6, atol=1e-6)
    assert torch.allclose(found, target.log_density(points), atol=0.02), (
        (found - target.log_density(points)).abs().max()
    )


def test_scaling_shifting_or_squeezing_the_velocity_raises_the_flow_matching_loss() -> None:
    target = distribution("mixture")
    best = exact_velocity(target)
    data = target.sample(4096, torch.Generator().manual_seed(2)).view(64, 64, 2)

    def loss(velocity) -> float:
        draw = draw_path(data, generator=torch.Generator().manual_seed(3))
        return flow_matching_loss(velocity, data, draw).item()

    assert loss(best) < loss(lambda x, t: 1.05 * best(x, t))
    assert loss(best) < loss(lambda x, t: best(x, t) + 0.1)
    assert loss(best) < loss(lambda x, t: best(0.97 * x, t))


def test_times_broadcast_over_groups_of_tokens() -> None:
    velocity = exact_velocity(distribution("rings"))
    x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([[0.2], [0.5], [0.9]])
    each = torch.stack([velocity(x[i], t[i]) for i in range(3)])
    assert torch.allclose(velocity(x, t), each, atol=1e-5)
    assert torch.allclose(velocity(x, 0.5)[1], each[1], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_finite_and_differentiable_everywhere(name: str) -> None:
    x = (torch.rand(200, 2, generator=torch.Generator().manual_seed(5)) * 8 - 4).requires_grad_()
    t = torch.linspace(0, 1, 200)
    value = exact_velocity(distribution(name))(x, t)
    (gradient,) = torch.autograd.grad(value.square().mean(), x)
    assert value.isfinite().all() and gradient.isfinite().all()
    assert math.isfinite(exact_velocity(distribution(name))(torch.zeros(1, 2), torch.tensor(1.0)).sum().item())
