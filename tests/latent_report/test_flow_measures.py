"""Latents whose irreducible variance, divergences and sampling error are known in closed form, and the measures of them."""

import math

import pytest
import torch

from flowprior.flow.path import path_sample
from latent_report.bootstrap import Estimate, mean
from latent_report.config import ReportConfig
from latent_report.figures import FIGURES
from latent_report.flows import FlowBudget, GaussianVelocity, train_flows
from latent_report.measure import Measured, Results, canonical, measure, measure_distribution, measure_places
from latent_report.measure_flows import log_likelihoods, measure_flow, measure_total_correlation, remark_on_budget
from latent_report.measures.alignment import alignment_of_images
from latent_report.measures.distribution import normalised
from latent_report.measures.flow import (
    TimeGrid,
    divergence_from_losses,
    euler_steps,
    gaussian_irreducible_variance,
    gaussian_total_correlation,
    posterior_variance,
    squared_errors,
)
from latent_report.opening import Latents

GRID = TimeGrid.midpoints(32)


def gaussian(count: int, covariance: torch.Tensor, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(count, len(covariance), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise @ torch.linalg.cholesky(covariance.double()).T).float()


def pair(correlation: float) -> torch.Tensor:
    return torch.tensor([[1.0, correlation], [correlation, 1.0]])


def test_the_irreducible_variance_of_white_noise_integrates_to_half_of_pi():
    fine = TimeGrid.midpoints(4000)
    total = (gaussian_irreducible_variance(torch.ones(3), fine.t) * fine.weights).sum()
    assert total.item() == pytest.approx(math.pi / 2, abs=1e-6)


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.0])
def test_the_best_velocity_of_a_gaussian_has_its_irreducible_variance_as_error_and_every_other_a_larger_one(deviation):
    latents = deviation * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(1)) + 3
    best = GaussianVelocity(torch.tensor([3.0]), torch.tensor([[deviation**2]]))
    expected = gaussian_irreducible_variance(torch.tensor([deviation]), GRID.t)
    errors = squared_errors(best, latents, GRID.t).double().mean(0)
    torch.testing.assert_close(errors, expected, rtol=0.05, atol=0)
    wrong = GaussianVelocity(torch.tensor([2.5]), torch.tensor([[deviation**2]]))
    assert (squared_errors(wrong, latents, GRID.t).mean(0) > errors)[4:-4].all()


def test_the_nearest_latents_tell_a_gaussians_irreducible_variance_and_never_more():
    latents = gaussian(2000, torch.diag(torch.tensor([1.5, 0.5])))
    expected = gaussian_irreducible_variance(torch.tensor([1.5, 0.5]).sqrt(), GRID.t)
    found = posterior_variance(latents, torch.arange(500), GRID.t).mean(0)
    torch.testing.assert_close(found[:26], expected[:26], rtol=0.1, atol=0)
    assert (found[-3:] < expected[-3:]).all()  # where paths of a sample no longer cross


def test_points_far_apart_have_the_posterior_variance_of_two_points():
    # x1 is -1 or 1: Var(x1 | x_t) = 1 - tanh^2(t x_t / (1 - t)^2)
    latents, t = torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.5])
    queries = torch.arange(2).repeat(20_000)
    found = posterior_variance(latents, queries, t).mean(0)
    for place, time in enumerate(t.tolist()):
        noise = torch.randn(200_000, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        x_t = (1 - time) * noise + time
        expected = (1 - (time * x_t / (1 - time) ** 2).tanh().square()).mean() / (1 - time) ** 2
        assert found[place].item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_losses_of_two_exact_flows_differ_by_the_total_correlation(correlation):
    latents, grid = gaussian(20_000, pair(correlation)), TimeGrid.midpoints(64, 0.99)
    apart = GaussianVelocity(torch.zeros(2), torch.eye(2))
    joined = GaussianVelocity(torch.zeros(2), pair(correlation))
    errors = [2 * squared_errors(velocity, latents, grid.t) for velocity in (apart, joined)]
    found = divergence_from_losses(*errors, grid).mean().item()
    expected = gaussian_total_correlation(pair(correlation), 1)
    assert expected == pytest.approx(-0.5 * math.log(1 - correlation**2))
    assert found == pytest.approx(expected, rel=0.08, abs=1e-9)


def test_the_total_correlation_of_wide_tokens_leaves_out_what_channels_of_one_token_know_of_each_other():
    covariance = torch.block_diag(pair(0.8), pair(0.3))
    assert gaussian_total_correlation(covariance, 2) == pytest.approx(0, abs=1e-12)
    assert gaussian_total_correlation(covariance, 1) == pytest.approx(-0.5 * math.log((1 - 0.64) * (1 - 0.09)))


@pytest.mark.parametrize("deviation", [0.5, 1.3])
def test_the_steps_that_are_needed_are_those_whose_product_comes_within_one_percent(deviation):
    velocity = GaussianVelocity(torch.zeros(2), deviation**2 * torch.eye(2))

    def scale_after(steps: int) -> float:
        scale = 1.0
        for step in range(steps):
            t = step / steps
            scale *= 1 + (t * deviation**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * deviation**2) / steps
        return scale

    exact = abs(deviation)
    tried = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    enough = next(place for place, steps in enumerate(tried) if abs(scale_after(steps) - exact) <= 0.01)
    found = euler_steps(velocity, (1000, 2), resamples=4)
    assert tried[enough - 1] < found.needed <= tried[enough] and found.tried.tolist() == tried[: len(found.tried)]
    assert abs(scale_after(round(found.needed)) - exact) == pytest.approx(0.01, rel=0.05)
    # of a Gaussian the distance is that of the deviations, up to the sample's own
    shifts = torch.tensor([abs(scale_after(steps) - exact) for steps in found.tried.tolist()], dtype=torch.float64)
    torch.testing.assert_close(found.distances, shifts, rtol=0.05, atol=1e-4)
    assert (found.distances[-1] <= 0.005 or found.tried[-1] == 256) and found.distances[-2] > 0.005
    assert (found.errors < 0.1 * shifts).all() and 0 < found.error < 0.1 * found.needed


def test_steps_that_never_suffice_are_the_most_that_were_tried():
    rough = euler_steps(lambda x, t: 40 * (20 * t * math.pi).sin() * x, (50, 2), most=4, resamples=4)
    assert rough.needed == 4 and rough.tried.tolist() == [1, 2, 3, 4] and rough.distances.min() > 0.01


BUDGET = FlowBudget(steps=100, images=128, width=32, depth=1, lr=5e-3)


def bent(count: int, seed: int = 0) -> torch.Tensor:
    """Two uncorrelated tokens of two channels, the second the squares of the first, with noise: ``(N, 2, 2)``."""
    first, noise = torch.randn(2, count, 2, generator=torch.Generator().manual_seed(seed))
    return torch.stack([first, 0.5 * (first.square() - 1) + 0.1 * noise], dim=1)


def total(velocity, latents: torch.Tensor) -> float:
    return squared_errors(lambda x, t: velocity(x, t.reshape(1)), latents, TimeGrid.midpoints(16).t).mean().item()


def test_what_the_flow_of_the_whole_has_not_learned_makes_the_divergence_smaller_and_that_of_tokens_larger():
    latents, grid = gaussian(6000, pair(0.8)), TimeGrid.midpoints(32, 0.99)
    apart, joined = GaussianVelocity(torch.zeros(2), torch.eye(2)), GaussianVelocity(torch.zeros(2), pair(0.8))
    wrong_apart = GaussianVelocity(torch.tensor([0.3, 0.0]), torch.tensor([[1.3, 0.0], [0.0, 0.8]]))
    wrong_joined = GaussianVelocity(torch.tensor([0.3, 0.0]), pair(0.6))

    def divergence(p, q) -> float:
        errors = (2 * squared_errors(velocity, latents, grid.t) for velocity in (p, q))
        return divergence_from_losses(*errors, grid).mean().item()

    right = divergence(apart, joined)
    assert divergence(apart, wrong_joined) < 0.9 * right and divergence(wrong_apart, joined) > 1.05 * right
    # where p is no product of q's own tokens, an error of its velocity may bring it nearer to q's
    elsewhere = GaussianVelocity(torch.zeros(2), pair(-0.5))
    assert right < divergence(elsewhere, joined)


def test_a_total_correlation_below_zero_says_that_images_were_too_few_in_place_of_a_number():
    z = normalised(gaussian(200, pair(0.8)).view(200, 2, 1))
    measured = Measured(Latents("latents", z, (2,)), z, torch.arange(160), torch.arange(160, 200), ReportConfig())
    of_tokens = GaussianVelocity(torch.zeros(1), torch.eye(1))
    for of_images, found in ((of_tokens, 0.0), (lambda x, t: torch.zeros_like(x), None)):
        results = Results()
        measure_total_correlation(measured, results, lambda x, t: of_tokens(x, t.unsqueeze(-1)), of_images)
        if found is None:
            assert "learned less than that of single tokens (-" in results.left_out["total_correlation"]
        else:
            assert results.figures["total_correlation"].value == found and not results.left_out


def test_trained_flows_find_dependence_that_no_covariance_shows():
    latents = normalised(bent(1500))
    token, together = train_flows(latents[:1200], BUDGET)
    held, grid = latents[1200:], TimeGrid.midpoints(16, 0.99)
    errors = [4 * squared_errors(lambda x, t, v=v: v(x, t.reshape(1)), held, grid.t).mean(1) for v in (token, together)]
    found = divergence_from_losses(*errors, grid).mean().item()
    covariance = torch.cov(latents.flatten(1).T)
    assert gaussian_total_correlation(covariance, 2) < 0.1 < 0.5 < found


def figures_of(latents: torch.Tensor) -> dict[str, float]:
    config = ReportConfig(flow=FlowBudget(steps=20, images=64, width=16, depth=1, times=8), resamples=2)
    groups = {"distribution": measure_distribution, "dependence": measure_places, "flow": measure_flow}
    found = measure(Latents("latents", latents, (latents.shape[1],)), config, groups)
    return {name: estimate.value for name, estimate in found.figures.items()}


@pytest.fixture(scope="module")
def skewed() -> tuple[torch.Tensor, dict[str, float]]:
    """Latents ``(300, 2, 2)`` that are no Gaussian's, and the figures that need no images."""
    latents = bent(300, seed=1) ** 3
    return latents, figures_of(latents)


def test_a_rotation_of_channels_changes_none_of_the_flows_figures(skewed):
    latents, found = skewed
    turn, _ = torch.linalg.qr(torch.randn(2, 2, generator=torch.Generator().manual_seed(3)))
    turned = figures_of(latents @ turn)
    names = [name for name, figure in FIGURES.items() if figure.group == "flow"] + ["total_correlation"]
    assert [turned[name] for name in names] == pytest.approx([found[name] for name in names], rel=2e-3, abs=1e-4)


def test_scaling_latents_and_shifting_their_channels_changes_no_figure_at_all(skewed):
    latents, found = skewed
    shifted = figures_of(7 * latents + torch.tensor([-2.0, 3.0]))
    assert found.keys() == shifted.keys() and len(found) > 15
    assert shifted == pytest.approx(found, rel=2e-3, abs=1e-4)


def test_noise_on_latents_makes_the_velocity_harder_to_know():
    latents = bent(800, seed=2)
    latents = torch.cat([latents, latents + 0.1 * bent(800, seed=5)], dim=1)  # (N, 4, 2) in half as many dimensions
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(4))
    found = []
    for share in (0.0, 0.3, 1.0):
        z = canonical(normalised(latents + share * noise))
        _, together = train_flows(z, FlowBudget(steps=30, images=64, width=16, depth=1))
        found.append(
            [
                total(together, z),
                posterior_variance(z.flatten(1), torch.arange(200), TimeGrid.midpoints(8).t).mean().item(),
            ]
        )
    assert found[0][0] < found[1][0] < found[2][0]
    assert found[0][1] < found[1][1] < found[2][1]


def test_every_velocity_meets_the_same_points():
    latents = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    seen = []

    def looking(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x.clone())
        return torch.zeros_like(x)

    for _ in range(2):
        errors = squared_errors(looking, latents, GRID.t[:2], seed=3)
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3]) and errors.shape == (5, 2)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(seen[0], path_sample(noise, latents, GRID.t[0]).x_t)


def test_a_gaussians_latents_have_its_log_density_under_the_flow_that_is_trained_on_them():
    latents = gaussian(1200, torch.diag(torch.tensor([2.0, 0.5, 0.2, 0.1]))).view(-1, 2, 2)
    _, together = train_flows(latents, FlowBudget(steps=10, images=64, width=16, depth=1))
    found = log_likelihoods(together, latents[:300]).mean().item()
    exact = torch.distributions.Normal(0.0, torch.tensor([2.0, 0.5, 0.2, 0.1]).sqrt())
    assert found == pytest.approx(exact.log_prob(latents[:300].flatten(1)).mean().item(), abs=0.03)


@pytest.mark.parametrize("gaussian, remarked", [(1.1, True), (1.3, False), (None, False)])
def test_a_flow_that_has_not_learned_more_than_a_gaussian_is_remarked_on(gaussian, remarked):
    results = Results(figures={name: Estimate(1.2, 0.01) for name in ("irreducible_variance", "total_correlation")})
    if gaussian is not None:
        results.figures["irreducible_variance_gaussian"] = Estimate(gaussian, 0.01)
    remark_on_budget(results)
    assert ("above the 1.1000 of a Gaussian" in results.remarks.get("irreducible_variance", "")) == remarked
    assert results.remarks.keys() == ({"irreducible_variance", "total_correlation"} if remarked else set())


@pytest.mark.parametrize("channels", [4, 32])
def test_the_alignment_losss_error_tells_how_far_another_seeds_lies(channels):
    """Of N(0, I) under its exact flow it is pi / 2, the irreducible variance of white noise."""

    class Exact:
        def velocity(self, x, t):
            return (2 * t - 1) / ((1 - t) ** 2 + t**2) * x

    found = []
    for seed in range(8):
        latents = torch.randn(300, 2, channels, generator=torch.Generator().manual_seed(100 + seed))
        found.append(mean(alignment_of_images(Exact(), latents, seed=seed)))
    values, errors = (torch.tensor(part) for part in zip(*found))
    assert abs(values.mean() - torch.pi / 2) < 3 * errors.mean() / 8**0.5
    assert 0.5 < values.std() / errors.mean() < 2
