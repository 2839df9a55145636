import math

import pytest
import torch

from sit.sde import DIFFUSIONS, euler_maruyama, score

COUNT = 40_000


def velocity_to(mean, std):
    """The exact velocity of the straight path from N(0, 1) to N(mean, std^2)."""

    def velocity(x, t):
        return mean + (t * std**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * std**2) * (x - t * mean)

    return velocity


@pytest.mark.parametrize("t", [0.0, 0.4, 0.99])
def test_the_score_is_the_gradient_of_the_marginals_log_density(t):
    mean, std, x = 2.0, 0.5, torch.linspace(-3, 3, 7, dtype=torch.float64)
    expected = -(x - t * mean) / ((1 - t) ** 2 + t**2 * std**2)
    torch.testing.assert_close(score(x, velocity_to(mean, std)(x, t), t), expected)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_the_diffusions_are_the_noises_share_and_a_squared_sine(t):
    assert DIFFUSIONS["sigma"](t) == 1 - t
    assert DIFFUSIONS["sin2"](t) == pytest.approx((1 - math.cos(2 * math.pi * t)) / 2, abs=1e-12)


@pytest.mark.parametrize("diffusion", DIFFUSIONS)
@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("mean, std, end", [(2.0, 0.5, 1.0), (-1.0, 1.6, 1.0), (1.0, 0.3, 0.7)])
def test_the_sde_ends_with_mean_and_deviation_of_the_path(diffusion, scale, mean, std, end):
    generator, last, steps = torch.Generator().manual_seed(0), 0.01, 250

    def noise():
        return torch.randn(COUNT, generator=generator, dtype=torch.float64)

    times = [(end - last) * step / steps for step in range(steps + 1)] + [end]
    x = euler_maruyama(velocity_to(mean, std), noise(), times, noise, diffusion, scale)
    expected = math.sqrt((1 - end) ** 2 + end**2 * std**2)
    assert x.mean().item() == pytest.approx(end * mean, abs=0.01 + 4 * expected / math.sqrt(COUNT))
    assert x.std().item() == pytest.approx(expected, rel=0.015 + 4 / math.sqrt(2 * COUNT))


def test_the_last_step_goes_to_the_datas_mean_given_the_state():
    mean, std, t = 2.0, 0.5, 0.9
    x = torch.linspace(-1, 3, 5, dtype=torch.float64)
    variance = (1 - t) ** 2 + t**2 * std**2
    expected = mean + t * std**2 / variance * (x - t * mean)
    torch.testing.assert_close(euler_maruyama(velocity_to(mean, std), x, [t, 1.0], lambda: None), expected)


def test_samples_forget_their_start_as_the_diffusion_grows():
    """The ODE carries a Gaussian's quantiles; the SDE does not."""
    start = torch.randn(2000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = []
    for scale in (0.0, 1.0, 8.0):
        generator = torch.Generator().manual_seed(0)
        times = [0.99 * step / 400 for step in range(401)] + [1.0]
        x = euler_maruyama(
            velocity_to(1.0, 0.5),
            start,
            times,
            lambda g=generator: torch.randn(2000, generator=g).double(),
            scale=scale,
        )
        kept.append(torch.corrcoef(torch.stack([start, x]))[0, 1].item())
    assert kept[0] > 0.999 > kept[1] > 2 * abs(kept[2])
