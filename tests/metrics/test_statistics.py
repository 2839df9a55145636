import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.errors import UserError
from flowprior.metrics.statistics import Statistics, StreamingMoments


def sample(count: int, dim: int, seed: int, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) + offset


def assert_moments_of(statistics: Statistics, x: np.ndarray) -> None:
    np.testing.assert_allclose(statistics.mu, x.mean(axis=0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(statistics.sigma, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-10)
    assert statistics.count == len(x) and statistics.sigma.dtype == np.float64


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 2),
    dim=st.integers(2, 6),
    offset=st.sampled_from([0.0, 1000.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_moments_equal_numpys_however_the_features_are_batched(sizes, dim, offset, seed):
    x = sample(sum(sizes), dim, seed, offset)
    moments = StreamingMoments()
    for batch in torch.from_numpy(x).split(sizes):
        moments.update(batch)
    assert_moments_of(moments.statistics(), x)


def test_features_of_another_dimension_are_refused():
    moments = StreamingMoments()
    moments.update(torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"\(B, 3\)"):
        moments.update(torch.zeros(5, 4))
    with pytest.raises(ValueError, match="at least two"):
        moments.statistics()


def test_a_saved_file_comes_back_whole(tmp_path):
    written = Statistics(np.arange(3.0), np.eye(3), 17, "digits", crop="centre 64", class_counts=(9, 8))
    written.save(tmp_path / "folder" / "stats.npz")
    read = Statistics.load(tmp_path / "folder" / "stats.npz")
    assert (read.count, read.extractor, read.crop, read.class_counts) == (17, "digits", "centre 64", (9, 8))
    assert np.array_equal(read.mu, written.mu) and np.array_equal(read.sigma, written.sigma)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["stats.npz"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_adms_files_are_read_in_any_float_dtype_with_their_other_arrays(tmp_path, dtype):
    x = sample(50, 3, 0).astype(dtype)
    arrays = {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False).astype(dtype)}
    others = {"mu_s": np.zeros(2), "arr_0": np.zeros((2, 4), np.uint8), "pickled": np.array([{}], dtype=object)}
    np.savez(tmp_path / "adm.npz", **arrays, **others)
    read = Statistics.load(tmp_path / "adm.npz")
    assert (read.count, read.extractor, read.mu.dtype, read.sigma.dtype) == (None, None, np.float64, np.float64)
    np.testing.assert_array_equal(read.sigma, arrays["sigma"].astype(np.float64))


EYE = np.eye(3)
BAD_ARRAYS = {
    "no array 'sigma'": {"mu": np.zeros(3)},
    "no array 'mu'": {"sigma": EYE, "x": np.zeros(1)},
    "square": {"mu": np.zeros(3), "sigma": np.zeros((3, 4))},
    "one dimension": {"mu": np.zeros((3, 1)), "sigma": EYE},
    "disagree": {"mu": np.zeros(4), "sigma": EYE},
    "not finite": {"mu": np.array([0, np.nan, 0]), "sigma": EYE},
    "not floating point": {"mu": np.zeros(3, np.int64), "sigma": EYE},
    "not a covariance": {"mu": np.zeros(3), "sigma": EYE + np.triu(np.ones((3, 3)))},
    "trace": {"mu": np.zeros(3), "sigma": -EYE},
    "cannot be read": {"mu": np.array([{}], dtype=object), "sigma": EYE},
}


@pytest.mark.parametrize("problem", BAD_ARRAYS)
def test_malformed_statistics_are_refused_with_file_and_problem(tmp_path, problem):
    np.savez(tmp_path / "bad.npz", **BAD_ARRAYS[problem])
    assert_refused(tmp_path / "bad.npz", problem)


def test_what_is_no_npz_is_refused_with_file_and_problem(tmp_path):
    assert_refused(tmp_path / "missing.npz", "no statistics file")
    np.save(tmp_path / "single.npy", EYE)
    assert_refused(tmp_path / "single.npy", "not an .npz file")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps({"mu": 1}))
    assert_refused(tmp_path / "pickle.npz", "not an .npz file")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("mu.npy", b"no array")
        archive.writestr("sigma.npy", b"")
    assert_refused(tmp_path / "zip.npz", "cannot be read")


def assert_refused(path, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        Statistics.load(path)
    assert str(path) in str(caught.value) and problem in str(caught.value) and "\n" not in str(caught.value)
