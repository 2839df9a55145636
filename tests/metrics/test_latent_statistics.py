"""Signals whose spectrum, variation and correlation are known, and the plain sums beside the transforms."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.metrics.latent_statistics import (
    autocorrelation,
    high_frequency_ratio,
    midpoints,
    power_spectrum,
    spectral_entropy,
    total_variation,
    variance_shares,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wave(cycles: int, tokens: int = 8) -> torch.Tensor:
    """Two images of one channel, with ``cycles`` over the tokens, at different phases and levels: ``(2, T, 1)``."""
    angle = 2 * math.pi * cycles * torch.arange(tokens) / tokens
    return torch.stack([angle.cos() + 3, 2 * (angle + 0.4).cos() - 1]).unsqueeze(-1)


@pytest.mark.parametrize("cycles", [1, 2, 3, 4])
def test_a_wave_has_all_power_at_its_frequency_and_that_of_opposite_sign(cycles):
    shares = power_spectrum(wave(cycles))
    bins = {cycles, 8 - cycles}
    assert [round(share, 6) for share in shares.tolist()] == [1 / len(bins) if k in bins else 0 for k in range(8)]
    assert high_frequency_ratio(wave(cycles)) == pytest.approx(1.0 if cycles > 2 else 0.0, abs=1e-12)
    assert spectral_entropy(wave(cycles)) == pytest.approx(math.log(len(bins)) / math.log(7), abs=1e-6)


@given(st.integers(2, 7), st.integers(1, 3), st.integers(0, 100))
@settings(max_examples=20)
def test_the_spectrum_is_the_plain_sum_over_places(tokens, channels, seed):
    latents = noise(4, tokens, channels, seed=seed)
    centred = latents - latents.mean(0)
    powers = [torch.zeros((), dtype=torch.float64)]
    for k in range(1, tokens):
        angle = 2 * math.pi * k * torch.arange(tokens, dtype=torch.float64) / tokens
        real, imaginary = (torch.einsum("ntc,t->nc", centred, wave) for wave in (angle.cos(), angle.sin()))
        powers.append((real.square() + imaginary.square()).mean())
    expected = torch.stack(powers) / sum(powers)
    torch.testing.assert_close(power_spectrum(latents), expected, rtol=1e-9, atol=1e-12)


def test_white_noise_has_entropy_one_and_the_share_of_high_frequencies_among_all():
    latents = noise(20_000, 8, 2)
    assert spectral_entropy(latents) == pytest.approx(1, abs=1e-3)
    assert high_frequency_ratio(latents) == pytest.approx(3 / 7, abs=5e-3)
    assert total_variation(latents) == pytest.approx(2 / math.sqrt(math.pi), abs=5e-3)
    correlation = autocorrelation(latents)
    assert len(correlation) == 8 and correlation[0] == 1 and correlation[1:].abs().max() < 0.02


def test_a_map_has_high_frequencies_where_some_direction_has():
    side, levels = torch.arange(8), torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    slow, fast = (2 * math.pi * side / 8).cos(), (2 * math.pi * 3 * side / 8).cos()

    def map_of(rows, columns):
        return levels * torch.outer(rows, columns).unsqueeze(-1)  # (2, 8, 8, 1)

    assert high_frequency_ratio(map_of(fast, slow)) == pytest.approx(1)
    assert high_frequency_ratio(map_of(slow, fast)) == pytest.approx(1)
    assert high_frequency_ratio(map_of(slow, slow)) == pytest.approx(0, abs=1e-9)
    assert power_spectrum(map_of(slow, slow)).shape == (8, 8)
    torch.testing.assert_close(autocorrelation(map_of(slow, slow))[4], torch.tensor(-1.0, dtype=torch.float64))


def test_the_autocorrelation_of_an_autoregressive_sequence_falls_by_its_coefficient():
    coefficient, steps = 0.7, [noise(40_000, 1)]
    for i in range(1, 6):
        steps.append(coefficient * steps[-1] + math.sqrt(1 - coefficient**2) * noise(40_000, 1, seed=i))
    correlation = autocorrelation(torch.stack(steps, dim=1))
    torch.testing.assert_close(correlation, coefficient ** torch.arange(6, dtype=torch.float64), rtol=0, atol=0.02)


def test_total_variation_counts_steps_of_each_channel_by_its_own_deviation_and_leaves_out_one_that_never_varies():
    ramp = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    one = torch.stack([ramp, 100 * ramp, torch.zeros(4)], dim=-1)  # (4, 3)
    assert total_variation(torch.stack([one, -one]) + 5) == pytest.approx(2 / ramp.square().mean().sqrt().item())


def test_offsets_of_places_change_nothing():
    latents, offsets = noise(6, 5, 3), noise(5, 3, seed=1)
    for measure in (spectral_entropy, high_frequency_ratio, total_variation):
        assert measure(latents + 7 * offsets) == pytest.approx(measure(latents), rel=1e-9)
    torch.testing.assert_close(autocorrelation(latents + 7 * offsets), autocorrelation(latents))


@given(st.integers(2, 9), st.integers(2, 5), st.integers(0, 100))
@settings(max_examples=20)
def test_the_variance_between_images_is_the_mean_covariance_of_two_different_tokens(count, tokens, seed):
    latents = noise(count, tokens, 2, seed=seed)
    covariance = sum(torch.cov(channel.T) for channel in latents.unbind(-1))  # (T, T)
    images = (covariance.sum() - covariance.trace()) / (tokens * (tokens - 1))
    within = covariance.trace() / tokens - images
    offsets = latents.mean(0).var(0, correction=0).sum() - within * (tokens - 1) / (tokens * count)
    total = images + within + offsets
    assert variance_shares(latents) == pytest.approx([(part / total).item() for part in (images, offsets, within)])


@pytest.mark.parametrize("between, apart, rest", [(0.0, 0.0, 1.0), (1.0, 2.0, 0.5), (0.3, 0.0, 1.0)])
def test_the_shares_of_variance_are_those_of_the_parts_that_latents_are_made_of(between, apart, rest):
    offsets = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1)
    parts = between * noise(20_000, 1, 3), apart * offsets, rest * noise(20_000, 4, 3, seed=1)
    variances = torch.tensor([between**2, apart**2, rest**2])
    shares = variance_shares(sum(parts).unflatten(1, (2, 2)))  # of a map
    assert shares == pytest.approx((variances / variances.sum()).tolist(), abs=6e-3) and sum(shares) == pytest.approx(1)


@pytest.mark.parametrize("measure", [spectral_entropy, high_frequency_ratio, total_variation])
@given(scale=st.floats(0.01, 100), shift=st.floats(-10, 10))
@settings(max_examples=15)
def test_no_measure_depends_on_scale_and_origin(measure, scale, shift):
    latents = noise(6, 5, 3)
    assert measure(scale * latents + shift) == pytest.approx(measure(latents), rel=1e-6)
    torch.testing.assert_close(autocorrelation(scale * latents + shift), autocorrelation(latents), rtol=1e-6, atol=1e-6)


@given(st.integers(2, 30), st.integers(0, 100))
@settings(max_examples=20)
def test_every_image_has_a_midpoint_with_another_and_each_is_anothers_once(count, seed):
    latents = noise(count, 2, 3, seed=seed)
    between, other = midpoints(latents, torch.Generator().manual_seed(seed))
    assert sorted(other.tolist()) == list(range(count)) and (other != torch.arange(count)).all()
    torch.testing.assert_close(between, (latents + latents[other]) / 2)


def test_what_has_no_answer_is_refused():
    for measure in (power_spectrum, total_variation, autocorrelation, variance_shares):
        for latents in (noise(3, 1, 2), noise(1, 3, 2), noise(3, 2)):
            with pytest.raises(ValueError, match="two images and places or more"):
                measure(latents)
    for measure in (power_spectrum, autocorrelation):
        with pytest.raises(ValueError, match="they have no"):
            measure(torch.ones(3, 4, 2))
    with pytest.raises(ValueError, match="they have no spectrum"):
        power_spectrum(noise(3, 1, 2).expand(3, 4, 2))
    with pytest.raises(ValueError, match="two images or more"):
        midpoints(noise(1, 2, 3), torch.Generator())


@pytest.mark.parametrize("spread", [[0.5, 1, 1, 1, 1, 0.5], [1, 0.1, 0.1, 0.1, 0.1, 1]])
def test_no_autocorrelation_leaves_1_where_places_vary_unequally(spread):
    latents = noise(200, 1, 3) * torch.tensor(spread, dtype=torch.float64).view(1, -1, 1)
    found = autocorrelation(latents)
    for distance in range(6):
        pairs = list(zip(spread, spread[distance:]))
        near, far = (sum(value**2 for value in side) for side in zip(*pairs))
        assert found[distance].item() == pytest.approx(sum(a * b for a, b in pairs) / (near * far) ** 0.5)
    assert found.abs().max() <= 1 + 1e-12
