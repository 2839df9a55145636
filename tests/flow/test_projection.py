import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from flowprior.flow import target_map as target_map_module
from flowprior.flow.projection import projection_matrix
from flowprior.flow.target_map import TargetMapSettings, fit_target_map


def test_random_entries_have_mean_zero_and_variance_one_over_the_features_channels():
    matrix = projection_matrix("random", 400, 250).double()
    count = matrix.numel()
    assert abs(matrix.mean()) < 5 * (1 / 400 / count) ** 0.5
    assert matrix.var().item() * 400 == pytest.approx(1, abs=5 * (2 / count) ** 0.5)


def test_a_random_projection_is_decided_by_its_seed_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    matrices = [projection_matrix("random", 7, 3, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(matrices[0], matrices[1]) and not torch.equal(matrices[0], matrices[2])
    assert torch.equal(torch.get_rng_state(), before)


@given(st.integers(1, 40).flatmap(lambda d2: st.tuples(st.just(d2), st.integers(1, d2))))
def test_avg_pool_is_torchs_adaptive_average_over_channels(sizes):
    features = torch.randn(6, sizes[0], generator=torch.Generator().manual_seed(sizes[0]))
    pooled = torch.nn.functional.adaptive_avg_pool1d(features, sizes[1])
    torch.testing.assert_close(features @ projection_matrix("avg_pool", *sizes), pooled, rtol=1e-5, atol=1e-6)


def test_pca_gives_scikit_learns_components_up_to_their_sign():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 3
    matrix = projection_matrix("pca", 6, 4, features=torch.from_numpy(features)).numpy()
    reference = PCA(4).fit(features).components_.T
    np.testing.assert_allclose(matrix * np.sign((matrix * reference).sum(0)), reference, atol=1e-5)
    assert (matrix[np.abs(matrix).argmax(0), range(4)] > 0).all()


def test_identity_is_the_identity():
    assert torch.equal(projection_matrix("identity", 5, 5), torch.eye(5))


@pytest.mark.parametrize(
    "kind, channels, words",
    [
        ("learned", 2, "write one of random, avg_pool, pca, identity"),
        ("avg_pool", 5, "use 'random'"),
        ("pca", 5, "use 'random'"),
        ("identity", 3, "use 'random'"),
        ("pca", 2, "pass them"),
    ],
)
def test_a_projection_that_cannot_be_made_is_refused_with_what_to_write(kind, channels, words):
    with pytest.raises(ValueError, match=words):
        projection_matrix(kind, 4, channels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64])
def test_features_have_unit_deviation_and_no_mean_before_the_projection(dtype, generator):
    features = (torch.randn(400, 6, generator=generator) * torch.arange(2, 8) * 3 + 20).to(dtype)
    mapped = fit_target_map(features, TargetMapSettings(6, "identity"))(features).double()
    torch.testing.assert_close(mapped.mean(0), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-4)
    assert mapped.square().mean().item() == pytest.approx(1, abs=1e-4)
    spreads = mapped.std(0)
    assert spreads[-1] > 2 * spreads[0]  # one deviation for all: the channels keep their proportions


def test_without_centring_features_are_only_scaled(generator):
    features = torch.randn(400, 3, generator=generator) + 5
    mapped = fit_target_map(features, TargetMapSettings(3, "identity", centre=False))(features)
    assert mapped.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    ratio = mapped / features
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


def test_large_sets_are_measured_on_rows_that_the_seed_decides(monkeypatch, generator):
    monkeypatch.setattr(target_map_module, "STATISTICS_ROWS", 500)
    features = torch.randn(20_000, 2, generator=generator) * 3 + 7
    maps = [fit_target_map(features, TargetMapSettings(2, "identity", seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(maps[0].mean, maps[1].mean) and not torch.equal(maps[0].mean, maps[2].mean)
    assert (maps[0].mean - 7).abs().max() < 5 * 3 / 500**0.5 and abs(maps[0].std - 3) < 0.5


@pytest.mark.parametrize(
    "features, words",
    [
        (torch.zeros(5), "shape"),
        (torch.zeros(1, 5), "N of at least 2"),
        (torch.zeros(5, 2), "constant"),
        (torch.tensor([[1.0, 2.0], [float("nan"), 0.0]]), "NaN"),
        (torch.tensor([[1.0, 2.0], [float("inf"), 0.0]]), "infinite"),
    ],
)
def test_features_that_nothing_can_be_learned_from_are_refused(features, words):
    with pytest.raises(ValueError, match=words):
        fit_target_map(features, TargetMapSettings(2, "identity"))


def test_targets_are_those_of_float32_whatever_trainings_autocast():
    features = 3 + torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    mapped = fit_target_map(features, TargetMapSettings(8))
    with torch.autocast("cpu", torch.bfloat16):
        within = mapped(features)
    assert within.dtype == torch.float32 and torch.equal(within, mapped(features))
