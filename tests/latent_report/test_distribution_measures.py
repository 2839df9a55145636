"""Latents whose spread is known, and the bootstrap's error of what is measured of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.metrics.sliced_wasserstein import sliced_wasserstein
from latent_report.bootstrap import bootstrap, mean
from latent_report.measures.distribution import (
    effective_rank,
    excess_kurtosis,
    gaussian_floor,
    normalised,
    some_tokens,
    spectrum,
    white_noise,
)
from latent_report.measures.semantics import cknna, linear_cka, neighbour_hits, probe_hits
from tokenizer.monitor import latent_metrics


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def turned(points: torch.Tensor, seed: int = 9) -> torch.Tensor:
    return points @ torch.linalg.qr(noise(points.shape[-1], points.shape[-1], seed=seed))[0]


def test_the_effective_rank_counts_axes_of_equal_variance_and_one_that_has_all_counts_once():
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(corners) == pytest.approx(4)
    assert effective_rank(torch.arange(5.0).unsqueeze(1) * torch.tensor([[1.0, -2.0]])) == pytest.approx(1, abs=1e-6)
    shares = spectrum(corners * torch.tensor([3.0, 1.0, 0.0, 0.0]))
    assert shares.tolist() == pytest.approx([0.9, 0.1, 0, 0])
    assert effective_rank(corners * torch.tensor([3.0, 1.0, 0, 0])) == pytest.approx(
        math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    )


@given(st.integers(2, 6), st.integers(0, 50))
@settings(max_examples=15)
def test_the_effective_rank_is_that_which_training_logs_and_depends_on_no_rotation_scale_or_shift(channels, seed):
    latents = noise(40, 3, channels, seed=seed) * torch.arange(1.0, channels + 1)
    rank = effective_rank(latents.flatten(0, 1))
    assert rank == pytest.approx(latent_metrics(latents)["latent_effective_rank"], rel=1e-4)
    assert effective_rank(turned(5 * latents.flatten(0, 1)) + 2) == pytest.approx(rank, rel=1e-4)


def test_the_kurtosis_of_a_coin_is_minus_two_and_of_a_gaussian_zero():
    coin = torch.tensor([-1.0, 1.0]).repeat(10).view(20, 1, 1)
    assert excess_kurtosis(coin) == pytest.approx(-2)
    assert excess_kurtosis(torch.cat([coin, torch.ones_like(coin)], dim=2)) == pytest.approx(-2)  # a dead channel
    assert abs(excess_kurtosis(noise(50_000, 1, 2))) < 0.05


def test_a_wide_gaussian_is_as_far_from_white_noise_as_its_deviation_is_from_one_and_white_noise_at_the_floor():
    reference, points = white_noise((3000, 3)), noise(3000, 3, seed=77)
    floor, deviation = gaussian_floor(reference)
    assert sliced_wasserstein(2.5 * points, reference) == pytest.approx(1.5, rel=0.03)
    assert abs(sliced_wasserstein(points, reference) - floor) < 4 * deviation < floor < 0.1


def test_some_tokens_are_as_many_of_every_image_and_each_its_own():
    latents = torch.arange(6 * 5).view(6, 5, 1)
    chosen = some_tokens(latents, 20).squeeze(-1)
    assert chosen.shape == (6, 3) and torch.equal(chosen // 5, torch.arange(6).unsqueeze(1).expand(6, 3))
    assert all(len(row.unique()) == 3 for row in chosen) and torch.equal(some_tokens(latents, 30), latents)
    assert len((some_tokens(latents, 4) // 5).unique()) == 4


def test_normalised_latents_have_one_deviation_for_all_channels():
    latents = noise(200, 3, 2) * torch.tensor([1.0, 3.0]) + 7
    z = normalised(latents)
    assert z.square().mean().item() == pytest.approx(1, rel=1e-5) and z.mean((0, 1)).abs().max() < 1e-5
    assert (z[..., 1].std() / z[..., 0].std()).item() == pytest.approx(
        (latents[..., 1].std() / latents[..., 0].std()).item()
    )
    with pytest.raises(ValueError, match="constant"):
        normalised(torch.ones(4, 2, 2))


def test_the_bootstraps_error_of_a_mean_is_the_known_one_by_resamples_and_by_halves():
    values = noise(400, seed=1).double()
    known = mean(values)
    assert known.error == pytest.approx(values.std(correction=0).item() / 20)
    for halves in (False, True):
        found = bootstrap(lambda i: values[i].mean(), 400, 800, halves=halves)
        assert found.value == pytest.approx(known.value) and found.error == pytest.approx(known.error, rel=0.12)


def test_the_bootstrap_is_a_function_of_its_seed_and_refuses_what_has_no_deviation():
    values = noise(30, 2)
    one, same, other = (bootstrap(lambda i: values[i].mean(0), 30, 10, seed) for seed in (1, 1, 2))
    assert torch.equal(one.error, same.error) and not torch.equal(one.error, other.error) and one.error.shape == (2,)
    for count, resamples in ((1, 10), (30, 1)):
        with pytest.raises(ValueError, match="two"):
            bootstrap(lambda i: 0.0, count, resamples)


def test_features_are_alike_to_a_rotation_and_scaling_of_themselves_and_independent_ones_are_not():
    features = noise(300, 6) * torch.arange(1.0, 7)
    for measure, shift in ((linear_cka, -1), (cknna, 0)):
        assert measure(features, 3 * turned(features) + shift) == pytest.approx(1, abs=1e-4)
        assert abs(measure(features, noise(300, 6, seed=2))) < 0.15
    lengths = torch.rand(300, 1, generator=torch.Generator().manual_seed(3)) + 0.1
    assert cknna(features, lengths * features) == pytest.approx(1, abs=1e-6)


def test_cka_is_the_plain_sum_over_covariances():
    one, other = noise(40, 3), noise(40, 5, seed=1)
    a, b = (x.double() - x.double().mean(0) for x in (one, other))
    cross, left, right = ((x.T @ y).square().sum() for x, y in ((a, b), (a, a), (b, b)))
    assert linear_cka(one, other) == pytest.approx((cross / (left * right).sqrt()).item())


def test_cknna_compares_the_cosines_of_pairs_that_are_near_in_both_sum_by_sum():
    one, other, k, count = noise(12, 3), noise(12, 5, seed=1), 4, 12

    def cosine(x, i, j):
        return torch.nn.functional.cosine_similarity(x[i].double(), x[j].double(), dim=0).item()

    def near(x, i, j):
        others = sorted((n for n in range(count) if n != i), key=lambda n: -cosine(x, i, n))
        return j in others[:k]

    def hsic(x, y):
        def kernel(of, i, j):
            return cosine(of, i, j) if i != j and near(x, i, j) and near(y, i, j) else 0.0

        pairs = [(i, j) for i in range(count) for j in range(count)]
        first = sum(kernel(x, i, j) * kernel(y, j, i) for i, j in pairs)
        second = sum(kernel(x, i, j) for i, j in pairs) * sum(kernel(y, i, j) for i, j in pairs)
        third = sum(kernel(x, i, n) * kernel(y, n, j) for i, j in pairs for n in range(count))
        return (first + second / ((count - 1) * (count - 2)) - 2 * third / (count - 2)) / (count * (count - 3))

    assert cknna(one, other, k) == pytest.approx(hsic(one, other) / (hsic(one, one) * hsic(other, other)) ** 0.5)


def test_classes_apart_are_known_to_both_classifiers_and_labels_at_random_to_neither():
    labels = torch.arange(3).repeat(60)
    points = 6 * torch.eye(3)[labels] + noise(180, 3)
    for hits in (neighbour_hits, probe_hits):
        assert hits(points[:120], labels[:120], points[120:], labels[120:]).mean() > 0.95
        shuffled = labels[torch.randperm(180, generator=torch.Generator().manual_seed(0))]
        assert hits(points[:120], shuffled[:120], points[120:], shuffled[120:]).mean() < 0.6
