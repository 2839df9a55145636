import pytest
import torch
from PIL import Image
from torch import nn

from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.target_map import TargetMap
from flowprior.flow.times import TimeConfig
from flowprior.metrics.sliced_wasserstein import sliced_wasserstein
from tokenizer.prior.evaluation import PriorEvaluation, mean_distance, moment_errors
from tokenizer.prior.held_out import split_rows
from tokenizer.prior.picture import draw_prior, principal_planes

CHANNELS, STD = 3, 0.5


class GaussianVelocity(nn.Module):
    """The exact velocity of the flow from N(0, I) to N(mean, std^2 I)."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x, t):
        t = torch.as_tensor(t, dtype=x.dtype)
        t = t.unsqueeze(-1) if t.dim() else t
        variance = (1 - t) ** 2 + t**2 * self.std**2
        return self.mean + (t * self.std**2 - (1 - t)) / variance * (x - t * self.mean)


def evaluation(tmp_path, velocity, share=0.4, times=None, mean=1.0, rows=4096):
    features = mean + STD * torch.randn(9000, CHANNELS, generator=torch.Generator().manual_seed(1))
    unit = TargetMap(torch.zeros(CHANNELS), torch.ones(()), torch.eye(CHANNELS))
    objective = FlowMatchingObjective(velocity, unit, 4, 1, times)
    return PriorEvaluation(objective, features, split_rows(9000, share, 0), tmp_path, rows)


def test_the_exact_flow_of_a_gaussian_comes_down_to_the_floor(tmp_path):
    metrics = evaluation(tmp_path, GaussianVelocity(1.0, STD))(7)
    assert metrics["held_out_mean_error"] < 0.03 and metrics["held_out_covariance_error"] < 0.08
    assert 0 < metrics["held_out_sliced_wasserstein"] < 0.05 and 0 < metrics["held_out_sliced_wasserstein_floor"] < 0.05


def test_a_flow_that_stands_still_is_as_far_as_noise_is(tmp_path):
    metrics = evaluation(tmp_path, GaussianVelocity(0.0, 1.0), mean=1.0)(7)  # its samples are N(0, I)
    # Along a direction w the means differ by <1, w>, whose square is 1 on average, and the deviations by 0.5.
    assert metrics["held_out_sliced_wasserstein"] == pytest.approx((1 + 0.25) ** 0.5, rel=0.05)
    assert metrics["held_out_mean_error"] == pytest.approx(1, rel=0.05)
    assert metrics["held_out_covariance_error"] == pytest.approx(3, rel=0.1)  # |I - I / 4| / |I / 4|


@pytest.mark.parametrize("times", [None, TimeConfig("logit_normal", 1.0, 0.3)])
def test_the_loss_is_the_expectation_under_the_trainings_times(tmp_path, times):
    measured = evaluation(tmp_path, GaussianVelocity(1.0, STD), times=times)(0)["held_out_loss"]
    u = (torch.arange(20_000) + 0.5) / 20_000
    t = (times or TimeConfig()).quantile(u.double())
    # Given x_t, the path's velocity varies by Var(x1 - x0 | x_t) = std^2 / ((1 - t)^2 + t^2 std^2) per channel.
    expected = (STD**2 / ((1 - t) ** 2 + t**2 * STD**2)).mean().item()
    assert measured == pytest.approx(expected, rel=0.03)


def test_figures_say_whether_they_compare_with_held_out_rows(tmp_path):
    held_out = evaluation(tmp_path, GaussianVelocity(1.0, STD), rows=64)
    training = evaluation(tmp_path, GaussianVelocity(1.0, STD), share=0.0, rows=64)
    assert all(name.startswith("held_out_") for name in held_out(0)) and held_out.compared_with == "held-out rows"
    assert all(name.startswith("training_rows_") for name in training(0)) and training.compared_with == "training rows"
    assert len(held_out(0)) == len(training(0)) == 5


def test_the_rows_compared_with_and_the_floors_have_none_in_common(tmp_path):
    for share in (0.0, 0.4):
        made = evaluation(tmp_path, GaussianVelocity(1.0, STD), share=share)
        reference, others = ({tuple(row) for row in rows.tolist()} for rows in (made.reference, made.others))
        assert len(reference) == len(made.reference) and not reference & others


def test_distances_to_a_small_set_are_averaged_over_equally_large_ones():
    points = torch.randn(1000, CHANNELS, generator=torch.Generator().manual_seed(0))
    reference = points[:100] + 1
    parts = [sliced_wasserstein(points[first : first + 100], reference) for first in range(0, 800, 100)]
    assert mean_distance(points, reference) == pytest.approx(sum(parts) / 8)
    assert mean_distance(points[:150], reference) == pytest.approx(parts[0])
    assert mean_distance(points[:60], reference) == pytest.approx(sliced_wasserstein(points[:60], reference))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_smallest_targets_are_measured_too(tmp_path, count):
    unit = TargetMap(torch.zeros(CHANNELS), torch.ones(()), torch.eye(CHANNELS))
    objective = FlowMatchingObjective(GaussianVelocity(1.0, STD), unit, 4, 1)
    features = torch.randn(count, CHANNELS, generator=torch.Generator().manual_seed(1))
    metrics = PriorEvaluation(objective, features, split_rows(count, 0.0, 0), tmp_path, 64)(0)
    assert all(value == value for value in metrics.values())


def test_figures_and_picture_are_the_same_in_every_call(tmp_path):
    made = evaluation(tmp_path, GaussianVelocity(1.0, STD), rows=200)
    first, file = made(3), tmp_path / "pictures" / "prior_00000003.png"
    picture = file.read_bytes()
    assert made(3) == first and file.read_bytes() == picture


@pytest.mark.parametrize("channels", [1, 3])
def test_moment_errors_are_exact(channels):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(50, channels, generator=generator, dtype=torch.float64)
    moved = moment_errors(points + 2, points)
    assert moved["mean_error"] == pytest.approx(2) and moved["covariance_error"] == pytest.approx(0, abs=1e-12)
    spread = moment_errors(points.mean(0) + 3 * (points - points.mean(0)), points)
    assert spread["mean_error"] == pytest.approx(0, abs=1e-12) and spread["covariance_error"] == pytest.approx(8)


@pytest.mark.parametrize("channels", [1, 2, 40])
def test_the_picture_can_be_drawn_of_any_number_of_channels(tmp_path, channels):
    points = torch.randn(300, channels, generator=torch.Generator().manual_seed(0))
    draw_prior(points, points[:100] + 1, "features", "title", tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] > 1000 and len(picture.convert("RGB").getcolors(1 << 20)) > 100


def test_the_planes_are_spanned_by_the_features_two_widest_directions():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(5000, 4, generator=generator) * torch.tensor([1.0, 9.0, 0.1, 4.0]) + 7
    features, samples = principal_planes(points, points[:10])
    assert features.std(0).tolist() == pytest.approx([9, 4], rel=0.1)
    assert torch.equal(features[:10], samples)
