"""The numbers of a toy run, on clouds whose answers are known."""

from __future__ import annotations

import pytest
import torch

from toy_examples.config import DensityConfig, MapConfig
from toy_examples.correlation import pearson, spearman
from toy_examples.density import kernel_estimate, kernel_samples, negative_log_likelihood
from toy_examples.distributions import DISTRIBUTIONS, distribution
from toy_examples.flow_stage import exact_flow
from toy_examples.maps import draw_maps
from toy_examples.measures import distances, kde_error, likelihoods, mode_shares, prior_samples, velocity_error
from toy_examples.summary import summary

CPU = torch.device("cpu")


def draw(name: str, count: int, seed: int = 0) -> torch.Tensor:
    return distribution(name).sample(count, torch.Generator().manual_seed(seed))


def test_data_cover_every_mode_and_a_lost_mode_is_seen() -> None:
    target = distribution("grid")
    data = draw("grid", 16_000)
    shares = mode_shares(target, data)
    assert shares["covered"] == 1.0 and shares["largest"] == pytest.approx(1 / 16, rel=0.15)
    without_one = data[torch.cdist(data.double(), target.nodes / target.std).argmin(1) != 3]
    assert mode_shares(target, without_one)["covered"] == pytest.approx(15 / 16)
    collapsed = data[:1].expand(100, 2)
    assert mode_shares(target, collapsed) == {"covered": 1 / 16, "largest": 1.0}


@pytest.mark.parametrize("name", list(DISTRIBUTIONS))
def test_the_exact_flow_has_no_velocity_error_and_draws_the_data(name: str) -> None:
    target = distribution(name)
    flow = exact_flow(target, name)
    assert velocity_error(flow, target, CPU) < 1e-3
    samples, data = prior_samples(flow, 1000, CPU), draw(name, 10_000)
    found = distances(target, data, {"prior_samples": samples})["sliced_wasserstein"]
    assert found["prior_samples"] < 2.5 * found["fresh_data"]


@pytest.mark.parametrize("name", ["mixture", "rings"])  # the rings have the steepest velocity
def test_the_exact_flow_has_the_exact_density_and_the_bound_holds_at_its_lambda(name: str) -> None:
    target = distribution(name)
    flow = exact_flow(target, name)
    clouds = {"data": draw(name, 60), "noise": torch.randn(60, 2, generator=torch.Generator().manual_seed(1))}
    found = likelihoods(flow, target, clouds, 64, CPU)
    assert found["log_prob_error"]["data"] < 0.02
    assert found["bound"]["smallest_lambda"] > 0 and found["bound"]["points"] == 120
    assert 0 < found["bound"]["mean_gap"] < found["bound"]["largest_gap"]


def test_over_the_grid_the_exact_alignment_goes_with_the_nll_of_the_mixture() -> None:
    target = distribution("mixture")
    nll = negative_log_likelihood(target, DensityConfig())
    maps = draw_maps(exact_flow(target, "mixture"), target, nll, MapConfig(grid=20, half_width=2.2, pairs=32), CPU)
    assert pearson(maps.alignment.flatten(), maps.nll.flatten()) > 0.95


def test_the_kernel_estimate_is_the_mean_of_kernels() -> None:
    target, config = distribution("moons"), DensityConfig("kde", kde_bandwidth=0.2, kde_samples=50)
    points = draw("moons", 7, seed=9).double()
    estimate = kernel_estimate(target, config)
    samples = kernel_samples(target, config).double()
    h = config.kde_bandwidth
    kernels = torch.exp(-torch.cdist(points, samples).square() / (2 * h**2)) / (2 * torch.pi * h**2)
    assert torch.allclose(estimate(points), kernels.mean(1).log(), atol=2e-3)
    assert torch.equal(negative_log_likelihood(target, config)(points), -estimate(points))


def test_more_samples_make_the_kernel_estimate_better() -> None:
    target, points = distribution("spiral"), draw("spiral", 500, seed=4)
    few, many = (kde_error(target, DensityConfig(kde_samples=n), points) for n in (200, 20_000))
    assert many["mean_absolute_error"] < 0.5 * few["mean_absolute_error"]


def test_ranks_share_their_mean_where_they_tie() -> None:
    a, b = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 20.0, 400.0])
    assert spearman(a, b) == pytest.approx(1.0) and pearson(a, b) < 0.9


def test_the_summary_has_a_column_for_each_run_and_leaves_out_what_none_has() -> None:
    rows = [{"distribution": "moons", "velocity_error": 0.5}, {"distribution": "rings", "seconds": {"total": 12.3}}]
    lines = summary(rows).splitlines()
    assert lines[0].split() == ["moons", "rings"]
    assert [line.split()[-2:] for line in lines[1:]] == [["0.500", "-"], ["-", "12"]]
