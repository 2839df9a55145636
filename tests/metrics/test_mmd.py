"""Maximum mean discrepancy against its closed form for Gaussians and its definition in loops."""

from __future__ import annotations

import math

import pytest
import torch

from flowprior.metrics.mmd import squared_mmd


def draw(count: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)) + shift


def test_it_is_the_definition_in_loops() -> None:
    a, b, h = draw(6, 0), draw(5, 1, 0.5), 0.8

    def k(x: torch.Tensor, y: torch.Tensor) -> float:
        return math.exp(-(x - y).square().sum().item() / (2 * h * h))

    within_a = sum(k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / 30
    within_b = sum(k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / 20
    between = sum(k(x, y) for x in a for y in b) / 30
    assert squared_mmd(a, b, h) == pytest.approx(within_a + within_b - 2 * between, abs=1e-6)


def test_two_gaussians_are_as_far_apart_as_the_closed_form_says() -> None:
    # E k(x, y) for unit Gaussians in the plane whose means differ by m: h^2 / (h^2 + 2) exp(-m^2 / 2 (h^2 + 2))
    h, shift = 1.0, 1.0
    expected = 2 * h**2 / (h**2 + 2) * (1 - math.exp(-(2 * shift**2) / (2 * (h**2 + 2))))
    assert squared_mmd(draw(4000, 0), draw(4000, 1, shift), h) == pytest.approx(expected, rel=0.08)


def test_it_is_zero_in_expectation_for_one_distribution() -> None:
    values = torch.tensor([squared_mmd(draw(60, 2 * i), draw(60, 2 * i + 1), 1.0) for i in range(200)])
    assert abs(values.mean()) < 4 * values.std() / 200**0.5 and (values < 0).any()


def test_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match="two points"):
        squared_mmd(draw(1, 0), draw(5, 1))


def test_a_kernel_without_width_is_refused() -> None:
    for bandwidth in (0.0, -1.0):
        with pytest.raises(ValueError, match="bandwidth"):
            squared_mmd(draw(5, 0), draw(5, 1), bandwidth)
    with pytest.raises(ValueError, match="coincide"):
        squared_mmd(draw(5, 0), torch.zeros(6, 2))
