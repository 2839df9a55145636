import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import CHANNELS, TOKENS, latents_and_labels, random_flow
from simflow.flow import AutoregressiveFlow

VARIANTS = [
    dict(depths=(1,)),
    dict(depths=(1, 1)),
    dict(depths=(1, 1, 3), conditioned="last"),
    dict(depths=(2, 1, 1), num_classes=0),
]


def standard_normal_log_prob(x):
    return torch.distributions.Normal(0, 1).log_prob(x).sum((1, 2))


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_the_inverse_of_forward_is_the_identity_and_so_is_forward_of_the_inverse(options, dtype, tolerance):
    flow = random_flow(dtype=dtype, **options)
    x, labels = latents_and_labels(dtype=dtype)
    with torch.no_grad():
        z, _ = flow(x, labels)
        assert (z - x).abs().max() > 0.1
        assert (flow.inverse(z, labels) - x).norm() < tolerance * x.norm()
        there, _ = flow(flow.inverse(x, labels), labels)
        assert (there - x).norm() < tolerance * x.norm()


@pytest.mark.parametrize("options", VARIANTS)
def test_the_log_determinant_is_that_of_the_jacobian(options):
    flow = random_flow(dtype=torch.float64, **options)
    x, labels = latents_and_labels(3, torch.float64)
    _, log_det = flow(x, labels)
    for i in range(len(x)):
        label, size = labels[i : i + 1], TOKENS * CHANNELS
        jacobian = torch.autograd.functional.jacobian(lambda one, label=label: flow(one[None], label)[0][0], x[i])
        torch.testing.assert_close(torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet, log_det[i])


@pytest.mark.parametrize("options", VARIANTS)
def test_sampling_with_kept_keys_and_values_is_sampling_without(options):
    """The plain way runs the whole transformer for every token."""
    flow = random_flow(dtype=torch.float64, **options)
    noise, labels = latents_and_labels(dtype=torch.float64)
    x = noise
    with torch.no_grad():
        for block in reversed(flow.blocks):
            z, x = x.flip(1) if block.backwards else x, torch.zeros_like(x)
            for i in range(TOKENS):
                mean, log_scale = block.affine(x, labels)
                x[:, i] = z[:, i] * log_scale[:, i].exp() + mean[:, i]
            x = x.flip(1) if block.backwards else x
        torch.testing.assert_close(flow.inverse(noise, labels), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backwards", [False, True])
def test_a_tokens_parameters_depend_on_every_token_before_it_and_on_no_other(backwards):
    block = random_flow(depths=(1, 1), dtype=torch.float64).blocks[0 if backwards else 1]
    assert block.backwards == backwards
    x, labels = latents_and_labels(1, torch.float64)
    for part in (0, 1):
        jacobian = torch.autograd.functional.jacobian(lambda x, part=part: block.affine(x, labels)[part][0], x)
        depends = jacobian.abs().sum((1, 2, 4)) > 0  # (T of the parameter, T of x)
        assert torch.equal(depends, torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril(-1))


def test_the_order_of_tokens_is_reversed_from_block_to_block_and_the_last_block_has_their_own():
    for blocks in (1, 2, 3, 4):
        flow = AutoregressiveFlow(3, 1, 8, (1,) * blocks, 2)
        directions = [block.backwards for block in flow.blocks]
        assert not directions[-1] and all(a != b for a, b in zip(directions, directions[1:]))
    # Through one block that goes forwards, the first token of z depends on the first of x alone; through a backwards one, the last.
    for backwards, alone in ((False, 0), (True, TOKENS - 1)):
        block = random_flow(depths=(1, 1)).blocks[0 if backwards else 1]
        x, labels = latents_and_labels(1)
        jacobian = torch.autograd.functional.jacobian(lambda x, block=block, labels=labels: block(x, labels)[0][0], x)
        depends = jacobian.abs().sum((1, 2, 4)) > 0
        assert depends[alone].nonzero().flatten().tolist() == [alone]


@given(st.integers(1, 4), st.integers(1, 3), st.lists(st.integers(1, 2), min_size=1, max_size=3))
@settings(max_examples=10)
def test_a_fresh_flow_is_the_identity_with_the_density_of_a_standard_normal(tokens, channels, depths):
    flow = AutoregressiveFlow(tokens, channels, 8, tuple(depths), 2, num_classes=2)
    x, labels = torch.randn(4, tokens, channels), torch.tensor([0, 1, 2, 0])
    z, log_det = flow(x, labels)
    assert torch.equal(z, x) and torch.equal(flow.inverse(x, labels), x) and not log_det.any()
    torch.testing.assert_close(flow.log_prob(x, labels), standard_normal_log_prob(x))


def test_bits_per_dimension_are_the_mean_negative_log_density_to_base_two():
    flow = AutoregressiveFlow(TOKENS, CHANNELS, 8, (1,), 2)
    x = torch.zeros(2, TOKENS, CHANNELS)
    expected = 0.5 * math.log2(2 * math.pi)
    torch.testing.assert_close(flow.bits_per_dimension(x), torch.full((2,), expected))


@pytest.mark.parametrize("tokens, channels", [(2, 1), (1, 2)])
def test_the_density_integrates_to_one(tokens, channels):
    flow = random_flow(0.2, torch.float64, tokens=tokens, channels=channels, num_classes=2, depths=(1, 1, 1))
    side = torch.linspace(-12, 12, 161, dtype=torch.float64)
    points = torch.cartesian_prod(side, side).view(-1, tokens, channels)
    with torch.no_grad():
        density = flow.log_prob(points, torch.zeros(len(points), dtype=torch.long)).exp()
    mass = density.sum() * (side[1] - side[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-3)


def test_after_training_the_likelihood_of_a_gaussian_is_within_two_hundredths_of_a_nat_of_the_truth():
    generator = torch.Generator().manual_seed(0)
    factor = torch.tensor([[1.0, 0, 0], [0.9, 0.5, 0], [-0.3, 0.4, 1.2]])
    truth = torch.distributions.MultivariateNormal(torch.tensor([1.0, -2.0, 0.5]), scale_tril=factor)

    def draw(count):
        flat = truth.mean + torch.randn(count, 3, generator=generator) @ factor.T
        return flat, flat.unsqueeze(-1)

    torch.manual_seed(0)
    flow = AutoregressiveFlow(3, 1, 16, (1, 1), 2, token_std=0.5)
    optimizer, steps = torch.optim.Adam(flow.parameters(), lr=1e-2), 300
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = -flow.log_prob(draw(256)[1]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    flat, tokens = draw(20_000)
    with torch.no_grad():
        found = flow.log_prob(tokens).mean()
    assert abs((found - truth.log_prob(flat).mean()).item()) < 0.02


def test_the_class_is_seen_by_the_blocks_that_are_to_see_it():
    for conditioned, seeing in (("all", [True, True, True]), ("last", [False, False, True])):
        flow = random_flow(conditioned=conditioned)
        x, _ = latents_and_labels(4)
        differs = []
        for block in flow.blocks:
            a, b = (block(x, torch.full((4,), label))[0] for label in (0, 1))
            differs.append(bool((a - b).abs().max() > 1e-4))
        assert differs == seeing


def test_the_denoised_sample_is_tweedies_for_gaussian_data():
    """Data N(0, 1) with noise of std s is N(0, 1 + s^2), and the clean sample's expectation given a noisy x is x / (1 + s^2)."""
    std = 0.6
    flow = AutoregressiveFlow(TOKENS, CHANNELS, 8, (1,), 2)
    with torch.no_grad():
        flow.blocks[0].to_affine.bias[CHANNELS:] = 0.5 * math.log(1 + std**2)
    x, _ = latents_and_labels()
    torch.testing.assert_close(flow.denoised(x, None, std), x / (1 + std**2))
    with torch.inference_mode():
        torch.testing.assert_close(flow.denoised(x.clone(), None, std), x / (1 + std**2))


def test_under_bfloat16_autocast_parameters_and_likelihood_are_float32_and_near_the_exact_ones():
    flow = random_flow(0.2)
    x, labels = latents_and_labels(32)
    with torch.no_grad():
        exact = flow.log_prob(x, labels)
        with torch.autocast("cpu", torch.bfloat16):
            found = flow.log_prob(x, labels)
            assert flow.blocks[0].affine(x, labels).mean.dtype == found.dtype == torch.float32
            back = flow.inverse(flow(x, labels)[0], labels)
    assert (found - exact).abs().max() < 0.05 * TOKENS * CHANNELS
    assert (back - x).norm() < 0.05 * x.norm()
