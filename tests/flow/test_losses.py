import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.flow.losses import alignment_loss, flow_matching_loss
from flowprior.flow.path import PathDraw, draw_path
from networks import random_prior, random_velocity


def slow_loss(velocity, data, noise, t, size, cond=None):
    """Eq. 3 token by token: data (B, n, C), noise (B, P, n, C), t (B, P or 1, n / size)."""
    terms = []
    for b in range(noise.shape[0]):
        for p in range(noise.shape[1]):
            for i in range(noise.shape[2]):
                x0, x1, time = noise[b, p, i], data[b, i], t[b, p % t.shape[1], i // size]
                condition = () if cond is None else (cond[b, i],)
                v = velocity((1 - time) * x0 + time * x1, time, *condition)
                terms += [(v[c] - (x1[c] - x0[c])) ** 2 for c in range(data.shape[-1])]
    return sum(terms) / len(terms)


@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    pairs=st.integers(1, 3),
    groups=st.integers(1, 3),
    size=st.integers(1, 3),
    conditional=st.booleans(),
    shared=st.booleans(),
    seed=st.integers(0, 999),
)
def test_the_loss_is_equation_3_taken_token_by_token(batch, pairs, groups, size, conditional, shared, seed):
    generator = torch.Generator().manual_seed(seed)
    n = groups * size
    velocity = random_velocity(2, 8, 1, cond_channels=4 if conditional else 0)
    data, noise = torch.randn(batch, n, 2, generator=generator), torch.randn(batch, pairs, n, 2, generator=generator)
    t = torch.rand(batch, 1 if shared else pairs, groups, generator=generator)
    cond = torch.randn(batch, n, 4, generator=generator) if conditional else None
    with torch.no_grad():
        fast = flow_matching_loss(velocity, data, PathDraw(noise, t), cond)
        torch.testing.assert_close(fast, slow_loss(velocity, data, noise, t, size, cond), rtol=1e-4, atol=1e-5)


def linear(a):
    return lambda x, t: a * x


def exact_linear_loss(y, a):
    """E over t and x0 of (a((1 - t) x0 + t y) - (y - x0))^2, the mean over the entries of y."""
    noise_part = ((a + 1) ** 3 - 1) / (3 * a)  # integral of (a (1 - t) + 1)^2
    data_part = ((a - 1) ** 3 + 1) / (3 * a)  # integral of (a t - 1)^2
    return (noise_part + data_part * y.square()).mean()


@pytest.mark.parametrize("pairs", [1, 4])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_at_any_group_size_loss_and_gradient_have_the_exact_expectation(size, pairs, generator):
    y, a = torch.tensor([[1.0, -2.0], [0.5, 0.0], [3.0, 1.0], [-1.0, 0.2]], requires_grad=True), 0.7
    exact = exact_linear_loss(y, a)
    (exact_gradient,) = torch.autograd.grad(exact, y)
    losses, gradients = [], []
    for _ in range(64):
        many = y.detach().expand(256, 4, 2).clone().requires_grad_()
        draw = draw_path(many, pairs=pairs, group_size=size, generator=generator)
        loss = flow_matching_loss(linear(a), many, draw)
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, many)[0].sum(0))
    for measured, truth in ((torch.stack(losses), exact.detach()), (torch.stack(gradients), exact_gradient)):
        error = measured.std(0) / 8
        assert (measured.mean(0) - truth).abs().le(5 * error + 1e-6).all()
        assert error.max() < 0.02 * truth.norm()


def test_the_grouped_and_the_per_token_estimator_agree_in_expectation(generator):
    velocity, y = random_velocity(2, 16, 2), torch.randn(4, 2, generator=generator)
    measured = {}
    for size in (1, 4):
        rows = []
        for _ in range(64):
            many = y.expand(256, 4, 2).clone().requires_grad_()
            loss = flow_matching_loss(velocity, many, draw_path(many, group_size=size, generator=generator))
            rows.append(torch.cat([loss.detach().view(1), torch.autograd.grad(loss, many)[0].sum(0).flatten()]))
        rows = torch.stack(rows)
        measured[size] = rows.mean(0), rows.std(0) / 8
    error = (measured[1][1] ** 2 + measured[4][1] ** 2).sqrt()
    assert (measured[1][0] - measured[4][0]).abs().le(5 * error).all()
    assert error[1:].norm() < 0.1 * measured[1][0][1:].norm()


def test_drawn_times_and_noise_depend_on_the_generator_alone():
    velocity, data = random_velocity(), torch.ones(2, 4, 3)
    losses = []
    for seed in (0, 0, 1):
        draw = draw_path(data, pairs=2, group_size=2, generator=torch.Generator().manual_seed(seed))
        losses.append(flow_matching_loss(velocity, data, draw).item())
    assert losses[0] == losses[1] != losses[2]


def test_latents_that_are_not_contiguous_have_the_same_loss(generator):
    velocity, data = random_velocity(), torch.randn(2, 4, 3, generator=generator)
    turned = data.transpose(1, 2).contiguous().transpose(1, 2)
    draw = draw_path(data, group_size=2, generator=generator)
    losses = [flow_matching_loss(velocity, x, draw) for x in (data, turned)]
    assert not turned.is_contiguous() and losses[0] == losses[1]


def test_a_single_token_needs_no_token_dimension(generator):
    velocity, token = random_velocity(), torch.randn(3, generator=generator)
    losses = [
        flow_matching_loss(velocity, x, draw_path(x, pairs=3, generator=torch.Generator().manual_seed(0)))
        for x in (token, token.view(1, 3))
    ]
    assert losses[0] == losses[1]


def test_no_tokens_are_refused():
    for empty in (torch.zeros(0, 4, 3), torch.zeros(2, 0, 3)):
        with pytest.raises(ValueError, match="no tokens"):
            flow_matching_loss(random_velocity(), empty, draw_path(empty))


def test_a_draw_for_other_tokens_is_refused(generator):
    draw = draw_path(torch.zeros(2, 4, 3), group_size=2, generator=generator)
    for others in (torch.zeros(2, 8, 3), torch.zeros(2, 2, 3), torch.zeros(3, 4, 3)):
        with pytest.raises(RuntimeError):
            flow_matching_loss(random_velocity(), others, draw)


def test_the_gradient_of_alignment_reaches_the_latents_and_nothing_else(generator):
    prior, latents = random_prior(), torch.randn(2, 4, 3, generator=generator, requires_grad=True)
    prior.alignment_loss(latents, generator=generator).backward()
    assert latents.grad.abs().min() > 0
    assert all(p.grad is None and not p.requires_grad for p in prior.parameters())


def test_the_gradient_of_alignment_equals_finite_differences(generator):
    velocity = random_velocity().requires_grad_(False)
    y = torch.randn(2, 4, 3, generator=generator)
    noise, t = torch.randn(2, 3, 4, 3, generator=generator), torch.rand(2, 3, 2, generator=generator)

    def loss(latents):
        return alignment_loss(velocity, latents, PathDraw(noise, t))

    (gradient,) = torch.autograd.grad(loss(y.requires_grad_()), y)
    for _ in range(5):
        direction = torch.randn(y.shape, generator=generator)
        with torch.no_grad():
            slope = (loss(y + 0.02 * direction) - loss(y - 0.02 * direction)) / 0.04
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-2, abs=1e-4)


def gaussian_velocity(mean, std, offset=0.0):
    """The exact velocity of the straight path from N(0, 1) to N(mean, std^2), moved by ``offset``."""

    def velocity(x, t):
        t = torch.as_tensor(t).unsqueeze(-1)
        variance = (1 - t) ** 2 + t**2 * std**2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean) + offset

    return velocity


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (2.0, 0.5), (-1.0, 2.0)])
def test_a_gaussians_exact_velocity_has_the_closed_form_minimum_of_the_loss_and_any_other_has_more(
    mean, std, generator
):
    draws = {offset: [] for offset in (0.0, 0.3, -0.3)}
    for seed in range(40):
        data = mean + std * torch.randn(2000, 1, generator=generator)
        for offset, losses in draws.items():
            again = torch.Generator().manual_seed(seed)
            draw = draw_path(data, generator=again)
            losses.append(flow_matching_loss(gaussian_velocity(mean, std, offset), data, draw))
    losses = {offset: torch.stack(values) for offset, values in draws.items()}
    minimum = std * math.pi / 2  # integral of std^2 / ((1 - t)^2 + t^2 std^2)
    error = losses[0.0].std() / 40**0.5
    assert error < 0.02 * minimum and abs(losses[0.0].mean() - minimum) < 5 * error
    for offset in (0.3, -0.3):
        more = losses[offset] - losses[0.0]
        assert abs(more.mean() - offset**2) < 5 * more.std() / 40**0.5 < offset**2
