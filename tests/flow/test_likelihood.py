"""Likelihood and the bound's terms against linear flows of Gaussians, where every number is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from flowprior.flow.likelihood import (
    alignment_per_token,
    elbo_terms,
    log_prob,
    shared_pairs,
    velocity_and_divergence,
)
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from networks import random_prior

MEAN = torch.tensor([0.7, -0.3], dtype=torch.float64)
MIX = torch.tensor([[0.9, 0.5], [0.0, 0.4]], dtype=torch.float64)
COVARIANCE = MIX @ MIX.T


def gaussian_velocity(x: Tensor, t: Tensor, mean: Tensor = MEAN, covariance: Tensor = COVARIANCE) -> Tensor:
    """The exact velocity towards N(mean, covariance): E[x1 - x0 | x_t] of jointly Gaussian variables."""
    t = torch.as_tensor(t, dtype=x.dtype)
    t = t.reshape((1,) * (x.dim() - 1 - t.dim()) + t.shape)[..., None, None]
    identity = torch.eye(len(mean), dtype=x.dtype)
    of_x_t = t**2 * covariance + (1 - t) ** 2 * identity
    with_velocity = t * covariance - (1 - t) * identity
    gain = with_velocity @ torch.linalg.inv(of_x_t)
    return mean + (gain @ (x - t[..., 0] * mean).unsqueeze(-1)).squeeze(-1)


def points(count: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1.5


def test_log_prob_is_the_gaussians():
    y = points(40).view(8, 5, 2)
    exact = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(y)
    assert torch.allclose(log_prob(gaussian_velocity, y, rtol=1e-9, atol=1e-9), exact, atol=1e-6)


def test_log_prob_does_not_depend_on_how_points_are_batched():
    y = points(30)
    whole = log_prob(gaussian_velocity, y, rtol=1e-8, atol=1e-8)
    assert torch.allclose(whole, log_prob(gaussian_velocity, y, rtol=1e-8, atol=1e-8, points_at_once=7), atol=1e-6)
    assert log_prob(gaussian_velocity, y[:0]).shape == (0,)


def test_hutchinsons_log_prob_is_unbiased():
    y = points(3)
    exact = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(y)
    many = log_prob(gaussian_velocity, y.expand(2000, 3, 2), divergence="hutchinson", rtol=1e-6, atol=1e-6)
    error = many.mean(0) - exact
    assert (error.abs() < 4 * many.std(0) / 2000**0.5 + 1e-5).all(), error
    assert (many.std(0) > 1e-3).all()  # otherwise the estimate was not one


def test_the_divergence_is_the_trace_of_the_jacobian():
    network = VelocityMLP(5, width=16, depth=2, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(3))
    t = torch.linspace(0.1, 0.9, 6)
    v, divergence = velocity_and_divergence(network, x, t)
    jacobians = [torch.autograd.functional.jacobian(lambda p, i=i: network(p, t[i]), x[i]) for i in range(6)]
    assert torch.allclose(divergence, torch.stack([j.trace() for j in jacobians]), atol=1e-4)
    assert torch.equal(v, network(x, t)) and not v.requires_grad


def isotropic(sigma: float):
    """Velocity a(t) x of N(0, sigma^2 I), and a."""

    def a(t):
        return (t * sigma**2 - (1 - t)) / (t**2 * sigma**2 + (1 - t) ** 2)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return a(t)[..., None] * x

    return velocity, a


@pytest.mark.parametrize("sigma", [0.5, 1.0, 1.7])
def test_the_terms_of_the_bound_are_those_of_the_closed_form(sigma: float):
    velocity, a = isotropic(sigma)
    y = points(20)
    terms = elbo_terms(velocity, y, pairs=4096)
    of_y = quad(lambda t: (a(t) * t - 1) ** 2, 0, 1)[0]
    of_noise = quad(lambda t: (a(t) * (1 - t) + 1) ** 2, 0, 1)[0]
    alignment = of_y * y.square().sum(-1) + 2 * of_noise
    assert torch.allclose(terms.alignment, alignment, rtol=5e-3)
    assert torch.allclose(terms.correction, torch.full((20,), -2 * math.log(sigma), dtype=torch.float64), atol=5e-3)
    assert terms.constant == pytest.approx(-math.log(2 * math.pi) - 1)
    assert torch.allclose(alignment_per_token(velocity, y, pairs=4096), terms.alignment)


def test_the_bound_holds_from_the_lambda_of_the_closed_form_on():
    sigma = 0.5
    velocity, a = isotropic(sigma)
    y = points(200) * 3
    terms = elbo_terms(velocity, y, pairs=4096)
    exact = torch.distributions.Normal(0, sigma).log_prob(y).sum(-1)
    # log p - constant - C = 1 - |y|^2 / 2 sigma^2, at most lambda L from this lambda on
    smallest = 1 / (2 * sigma**2 * quad(lambda t: (a(t) * t - 1) ** 2, 0, 1)[0])
    assert (exact >= terms.constant + terms.correction - 1.01 * smallest * terms.alignment).all()
    assert not (exact >= terms.constant + terms.correction - 0.5 * smallest * terms.alignment).all()


def test_hutchinsons_correction_agrees_with_the_exact_one():
    y = points(5)
    exact = elbo_terms(gaussian_velocity, y, pairs=512)
    estimated = elbo_terms(gaussian_velocity, y, pairs=512, divergence="hutchinson", probes=64)
    assert torch.equal(exact.alignment, estimated.alignment)
    assert torch.allclose(exact.correction, estimated.correction, atol=0.05)
    assert not torch.equal(exact.correction, estimated.correction)


def test_an_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="hutchinson"):
        elbo_terms(gaussian_velocity, points(2), divergence="guess")


def test_shared_pairs_are_uniform_times_and_standard_normal_noise():
    t, noise = shared_pairs(4096, 3)
    assert t.shape == (4096, 1) and noise.shape == (4096, 1, 3)
    assert torch.allclose(t.sort(0).values[:, 0], (torch.arange(4096) + 0.5) / 4096, atol=1e-3)
    assert torch.allclose(noise.mean(0), torch.zeros(1, 3), atol=1e-2)
    assert torch.allclose(noise[:, 0].T.cov(), torch.eye(3), atol=2e-2)


def test_a_prior_gives_log_prob_and_terms_per_token():
    velocity = VelocityMLP(3, width=8, depth=1, generator=torch.Generator().manual_seed(0))
    prior = FlowPrior(velocity, TargetMap(torch.zeros(3), torch.ones(()), torch.eye(3)))
    latents = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    density, terms = prior.log_prob(latents), prior.elbo_terms(latents, pairs=8)
    assert density.shape == terms.alignment.shape == terms.correction.shape == (2, 4)
    assert not density.requires_grad
    # a network at initialisation gives zero velocity: the flow is the identity
    assert torch.allclose(density, torch.distributions.Normal(0, 1).log_prob(latents.detach()).sum(-1), atol=1e-5)
    with pytest.raises(ValueError, match="3 channels"):
        prior.log_prob(latents[..., :2])


@pytest.mark.parametrize("channels", [3, 12])  # an exact divergence, and Hutchinson's
def test_densities_are_the_same_under_inference_mode(channels):
    prior = random_prior(channels, feature_channels=channels)
    latents = torch.randn(4, channels, generator=torch.Generator().manual_seed(1))
    expected = prior.log_prob(latents), *prior.elbo_terms(latents, pairs=8)[:2]
    with torch.inference_mode():
        for points in (latents, latents.clone()):  # made outside and inside
            found = prior.log_prob(points), *prior.elbo_terms(points, pairs=8)[:2]
            assert all(torch.equal(one, other) for one, other in zip(found, expected))
