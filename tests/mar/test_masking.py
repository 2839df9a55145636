import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flowprior.training.randomness import StepRandom
from mar.masking import few_counts, mask_ratio, masked_count, neighbour
from mar.model import MARConfig

STEPS = 4000


@given(st.floats(0.05, 1.0), st.floats(0.05, 2.0), st.integers(0, 1000))
def test_the_mask_ratio_lies_between_its_minimum_and_one(low, std, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = [mask_ratio(MARConfig(mask_ratio_min=low, mask_ratio_std=std), generator) for _ in range(5)]
    assert all(low - 1e-9 <= draw <= 1 for draw in draws)


@pytest.mark.parametrize("low, std", [(0.7, 0.25), (0.1, 0.5), (0.5, 0.05)])
def test_the_mask_ratio_is_a_truncated_normal(low, std):
    generator = torch.Generator().manual_seed(0)
    draws = [mask_ratio(MARConfig(mask_ratio_min=low, mask_ratio_std=std), generator) for _ in range(4000)]
    assert stats.kstest(draws, stats.truncnorm((low - 1) / std, 0, loc=1, scale=std).cdf).pvalue > 1e-3


def counts_and_chances(tokens: int, low: float, std: float) -> tuple[np.ndarray, np.ndarray]:
    """Every number of masked tokens, and the truncated normal's chance of it, by SciPy."""
    counts = np.arange(max(1, math.ceil(tokens * low)), tokens + 1)
    cdf = stats.truncnorm((low - 1) / std, 0, loc=1, scale=std).cdf
    return counts, np.diff([0.0, *cdf(counts / tokens)])


@given(st.integers(1, 256), st.integers(2, 8), st.floats(0.05, 1.0))
def test_few_numbers_of_masked_tokens_are_as_many_as_asked_for_at_most_from_the_fewest_to_all(tokens, asked, low):
    counts = few_counts(MARConfig(mask_counts=asked, mask_ratio_min=low), tokens)
    assert counts[0] == max(1, math.ceil(tokens * low)) and counts[-1] == tokens
    assert len(counts) == min(asked, tokens - counts[0] + 1) and counts == sorted(set(counts))
    assert np.ptp(np.diff(counts)) <= 1 if len(counts) > 1 else True


def test_mar_bs_six_numbers():
    assert few_counts(MARConfig(mask_counts=6), 64) == [45, 49, 53, 56, 60, 64]


@pytest.mark.parametrize("tokens, low", [(64, 0.7), (256, 0.7), (8, 0.1)])
def test_every_number_of_masked_tokens_keeps_its_mean_among_few(tokens, low):
    counts = few_counts(MARConfig(mask_counts=6, mask_ratio_min=low), tokens)
    every = range(counts[0], tokens + 1)
    draws = (np.arange(5040) + 0.5) / 5040  # all gaps up to ten divide it
    gaps = np.diff(counts)
    assert set(gaps) <= set(range(1, 17)) and len(every) > len(counts)
    for count in every:
        moved = [neighbour(count, counts, u) for u in draws]
        assert np.mean(moved) == pytest.approx(count, abs=16 / 5040)
        assert set(moved) <= set(counts) and np.ptp(moved) <= gaps.max()


@pytest.mark.parametrize("tokens", [8, 64])
def test_steps_mask_few_numbers_of_tokens_and_as_many_of_them_as_without(tokens):
    few, all_ = (
        [masked_count(MARConfig(mask_counts=asked), tokens, StepRandom(0, step)) for step in range(STEPS)]
        for asked in (6, 0)
    )
    assert len(set(few)) <= 6 and min(few) >= 0.7 * tokens and max(few) == tokens
    difference = np.subtract(few, all_)
    assert abs(difference.mean()) < 4 * difference.std() / math.sqrt(STEPS) + 1e-12
    kept = set(few_counts(MARConfig(mask_counts=6), tokens))
    assert all(one == other for one, other in zip(few, all_) if other in kept)


@pytest.mark.parametrize("std", [0.25, 2.0])
def test_without_the_option_every_number_of_masked_tokens_has_the_truncated_normals_chance(std):
    counts, chances = counts_and_chances(64, 0.7, std)
    drawn = [masked_count(MARConfig(mask_ratio_std=std), 64, StepRandom(1, step)) for step in range(STEPS)]
    assert stats.chisquare(np.bincount(drawn, minlength=65)[counts], STEPS * chances).pvalue > 1e-3


@pytest.mark.parametrize("asked", [-1, 1])
def test_a_single_number_of_masked_tokens_is_refused(asked):
    with pytest.raises(ValueError, match=f"at least 2, not {asked}"):
        MARConfig(mask_counts=asked)
