"""The averaged regression target: what it is averaged towards, and that the plain one is its special case."""

from __future__ import annotations

import torch

from flowprior.flow.velocity import VelocityMLP
from flowprior.training.randomness import StepRandom
from toy_examples.distributions import distribution
from toy_examples.exact_velocity import exact_velocity
from toy_examples.stable_target import StableTargetObjective, stable_target


def pairs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    data = distribution("grid").sample(count, generator)
    return torch.randn(count, 2, generator=generator), data, torch.rand(count, generator=generator)


def test_over_its_own_sample_alone_it_is_the_plain_target() -> None:
    noise, data, t = pairs(1)
    assert torch.equal(stable_target(noise, data, t, data), data - noise)


def test_it_is_the_weighted_mean_over_pairs_that_lead_through_the_same_point() -> None:
    noise, data, t = (part.double() for part in pairs(6))
    x_t = (1 - t)[:, None] * noise + t[:, None] * data
    wanted = torch.zeros_like(data)
    for i in range(6):
        implied = (x_t[i] - t[i] * data) / (1 - t[i])  # the noise that each sample would need
        weights = torch.exp(-implied.square().sum(-1) / 2)
        wanted[i] = (weights[:, None] * (data - implied)).sum(0) / weights.sum()
    assert torch.allclose(stable_target(noise, data, t, data), wanted, atol=1e-8)


def test_over_more_samples_it_comes_closer_to_the_exact_velocity() -> None:
    target = distribution("grid")
    velocity, errors = exact_velocity(target), []
    noise, data, t = pairs(400)
    x_t = (1 - t)[:, None] * noise + t[:, None] * data
    others = target.sample(20_000, torch.Generator().manual_seed(1))
    for count in (0, 500, 20_000):
        found = torch.cat(
            [
                stable_target(noise[i, None], data[i, None], t[i, None], torch.cat([data[i, None], others[:count]]))
                for i in range(400)
            ]
        )
        errors.append((found - velocity(x_t, t)).square().mean().item())
    assert errors[2] < 0.5 * errors[1] < 0.1 * errors[0]


def test_its_mean_at_a_point_is_the_exact_velocity_at_the_smallest_batch() -> None:
    # Data are 0 or 1 on a line; x_t in a narrow bin, batches of two samples of which the first makes x_t.
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(2, (400_000, 2, 1), generator=generator).double()
    noise, t = torch.randn(400_000, 1, generator=generator, dtype=torch.float64), torch.tensor(0.6)
    x_t = 0.4 * noise + 0.6 * data[:, 0]
    for centre in (-0.2, 0.3, 0.8):
        inside = ((x_t - centre).abs() < 0.02).squeeze()
        found = torch.cat([stable_target(n[None], d[:1], t[None], d) for n, d in zip(noise[inside], data[inside])])
        one = torch.sigmoid((0.6 * x_t[inside] - 0.18) / 0.16)  # P(x1 = 1 | x_t)
        exact = (one - x_t[inside]) / 0.4
        error = found - exact
        assert error.mean().abs() < 4 * error.std() / len(error) ** 0.5 and error.std() > 0.05


def test_it_is_finite_up_to_the_end_of_the_path() -> None:
    noise, data, _ = pairs(50)
    for t in (0.0, 1 - 1e-6, 1.0):
        assert stable_target(noise, data, torch.full((50,), t), data).isfinite().all()


def test_the_objective_trains_the_network_alone_and_is_a_function_of_seed_and_step() -> None:
    velocity = VelocityMLP(2, width=8, depth=1, generator=torch.Generator().manual_seed(0))
    objective = StableTargetObjective(velocity, pairs=2, group_size=4)
    batch = {"features": pairs(16)[1]}
    first, again, other = (objective(batch, StepRandom(0, step)).loss for step in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    first.backward()
    assert velocity.output.linear.weight.grad is not None
