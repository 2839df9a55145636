"""Distribution alignment against Gaussians on the line, where the divergence and both velocities have closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior import OnlineFlow
from flowprior.flow.distribution import PATH_WEIGHTS, distribution_loss
from flowprior.flow.losses import alignment_loss
from flowprior.flow.path import PathDraw, draw_path, path_sample
from networks import random_prior, random_velocity

LAMBDA = {"plain": lambda t: (1 - t) / t**2, "kl": torch.ones_like, "noise": lambda t: (1 - t) ** 2 / t**2}
T_MAX, MEAN, STD = 0.9, 0.8, 1.5  # of the latents; the target is N(0, 0.6^2)
TARGET_STD = 0.6


def gaussian_velocity(mean, std):
    """The exact velocity of the path from N(0, 1) to N(mean, std^2)."""

    def velocity(x, t):
        t = torch.as_tensor(t).unsqueeze(-1)
        return mean + (t * std**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * std**2) * (x - t * mean)

    return velocity


def exact_divergence(weight, mean, std):
    """``int_0^t_max lambda(t) KL(q_t || p_t) dt`` of ``q = N(mean, std^2)``, by quadrature in float64."""
    t = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * T_MAX
    q, p = ((1 - t) ** 2 + t**2 * s**2 for s in (std, TARGET_STD))
    kl = 0.5 * ((q + (t * mean) ** 2) / p - 1 - (q / p).log())
    return (LAMBDA[weight](t) * kl).mean() * T_MAX


def estimates(weight, online, repeats=40, count=2000):
    """Losses and their gradients in (mean, std) of latents ``mean + std e``, ``(repeats, 3)``."""
    generator, rows = torch.Generator().manual_seed(0), []
    for _ in range(repeats):
        parameters = torch.tensor([MEAN, STD], requires_grad=True)
        latents = parameters[0] + parameters[1] * torch.randn(count, 1, generator=generator)
        draw = draw_path(latents, generator=generator)
        terms = distribution_loss(online, gaussian_velocity(0.0, TARGET_STD), latents, draw, weight=weight, t_max=T_MAX)
        (gradient,) = torch.autograd.grad(terms.loss, parameters)
        rows.append(torch.cat([terms.loss.detach().view(1), gradient]))
    return torch.stack(rows).double()


@pytest.mark.parametrize("weight", list(PATH_WEIGHTS))
def test_value_and_gradient_are_those_of_the_weighted_divergence(weight):
    parameters = torch.tensor([MEAN, STD], dtype=torch.float64, requires_grad=True)
    exact = exact_divergence(weight, *parameters)
    truth = torch.cat([exact.detach().view(1), *torch.autograd.grad(exact, [parameters])])
    rows = estimates(weight, gaussian_velocity(MEAN, STD))
    error = rows.std(0) / len(rows) ** 0.5
    assert ((rows.mean(0) - truth).abs() < 4 * error).all() and (error < 0.02 * truth.abs()).all()


@pytest.mark.parametrize("weight", list(PATH_WEIGHTS))
def test_where_the_latents_have_the_targets_distribution_value_and_gradient_vanish(weight, generator):
    velocity, latents = gaussian_velocity(0.0, TARGET_STD), torch.randn(50, 1, requires_grad=True)
    draw = draw_path(latents, generator=generator)
    loss = distribution_loss(velocity, velocity, latents, draw, weight=weight).loss
    loss.backward()
    assert loss == 0 and not latents.grad.any()


def test_an_error_of_the_online_flow_that_averages_out_leaves_no_force_at_the_target(generator):
    def shaky(x, t):
        return gaussian_velocity(0.0, TARGET_STD)(x, t) + 0.3 * torch.randn(x.shape, generator=generator)

    forces = []
    for _ in range(100):
        latents = (TARGET_STD * torch.randn(500, 1, generator=generator)).requires_grad_()
        draw = draw_path(latents, generator=generator)
        loss = distribution_loss(shaky, gaussian_velocity(0.0, TARGET_STD), latents, draw).loss
        (gradient,) = torch.autograd.grad(loss, latents)
        forces.append(torch.stack([gradient.sum(), (gradient * latents.detach()).sum()]))
    forces = torch.stack(forces)
    assert (forces.mean(0).abs() < 4 * forces.std(0) / 10).all() and forces.std(0).min() > 0


@settings(max_examples=20)
@given(
    pairs=st.integers(1, 3),
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
    weight=st.sampled_from(list(PATH_WEIGHTS)),
    seed=st.integers(0, 999),
)
def test_the_gradient_at_a_latent_is_the_weighted_difference_of_velocities_taken_pair_by_pair(
    pairs, groups, size, weight, seed
):
    generator = torch.Generator().manual_seed(seed)
    online, prior, n = random_velocity(2, 8, 1, seed=1), random_velocity(2, 8, 1, seed=2), groups * size
    y = torch.randn(2, n, 2, generator=generator, requires_grad=True)
    noise, u = torch.randn(2, pairs, n, 2, generator=generator), torch.rand(2, pairs, groups, generator=generator)
    distribution_loss(online, prior, y, PathDraw(noise, u), weight=weight, t_max=T_MAX).loss.backward()
    expected = torch.zeros_like(y)
    with torch.no_grad():
        for b in range(2):
            for p in range(pairs):
                for i in range(n):
                    t = T_MAX * u[b, p, i // size]
                    x_t = (1 - t) * noise[b, p, i] + t * y[b, i]
                    w = LAMBDA[weight](t) * t**2 / (1 - t)
                    expected[b, i] += T_MAX * w * (online(x_t, t) - prior(x_t, t)) / pairs / y.numel()
    torch.testing.assert_close(y.grad, expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for network in (online, prior) for p in network.parameters())


@pytest.mark.parametrize("known, lag", [(1.0, 0.0), (0.5, 0.5), (2.0, -0.5)])
def test_what_is_observed_over_what_is_predicted_tells_how_much_of_the_difference_the_online_flow_knows(known, lag):
    p, q = gaussian_velocity(0.0, TARGET_STD), gaussian_velocity(MEAN, STD)
    latents = MEAN + STD * torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0))
    terms = distribution_loss(
        lambda x, t: p(x, t) + known * (q(x, t) - p(x, t)),
        p,
        latents,
        draw_path(latents, generator=torch.Generator().manual_seed(1)),
        t_max=T_MAX,
    )
    measured = (terms.observed - terms.predicted) / torch.maximum(terms.observed.abs(), terms.predicted)
    assert measured.item() == pytest.approx(lag, abs=0.02)


def test_a_weight_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match="plain, kl, noise"):
        distribution_loss(random_velocity(), random_velocity(), y := torch.zeros(2, 3), draw_path(y), weight="dmd")


def test_the_likelihood_objective_is_equation_5_bit_for_bit(generator):
    prior, y = random_prior(), torch.randn(2, 4, 3, generator=generator, requires_grad=True)
    noise, t = torch.randn(2, 2, 4, 3, generator=generator), torch.rand(2, 2, 2, generator=generator)
    path = path_sample(noise.view(2, 2, 2, 2, 3), y.view(2, 1, 2, 2, 3), t.unsqueeze(-1))
    plain = (prior.velocity(path.x_t, t.unsqueeze(-1)) - path.velocity).square().mean()
    named = prior.alignment_loss(y, PathDraw(noise, t), objective="likelihood")
    assert torch.equal(plain, named) and torch.equal(plain, prior.alignment_loss(y, PathDraw(noise, t)))
    gradients = [torch.autograd.grad(loss, y)[0] for loss in (plain, named)]
    assert torch.equal(*gradients)


def test_both_is_the_sum_and_only_the_likelihood_needs_no_online_flow(generator):
    prior, y = random_prior(), torch.randn(2, 4, 3, generator=generator)
    online = OnlineFlow(prior)
    online.update(y)
    draw = draw_path(y, pairs=2, generator=generator)
    parts = [prior.alignment_loss(y, draw, objective=o, online=online) for o in ("likelihood", "distribution")]
    both = prior.alignment_loss(y, draw, objective="both", online=online)
    torch.testing.assert_close(both, parts[0] + parts[1])
    assert parts[1] > 0 and torch.equal(parts[0], alignment_loss(prior.velocity, y, draw))
    for objective, message in (("distribution", "OnlineFlow"), ("both", "OnlineFlow"), ("mode", "likelihood, distri")):
        with pytest.raises(ValueError, match=message):
            prior.alignment_loss(y, objective=objective)
