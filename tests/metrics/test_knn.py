import subprocess
import sys

import numpy as np
import pytest
import torch

from flowprior.errors import UserError
from flowprior.metrics.knn import KNNDensity


def brute_force(target: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    distances = np.sqrt(np.square(y[:, None].astype(np.float64) - target[None].astype(np.float64)).sum(-1))
    return np.sort(distances, axis=1)[:, k - 1]


@pytest.mark.parametrize("k, dim, offset", [(1, 2, 0.0), (5, 32, 0.0), (10, 8, 300.0)])
def test_log_distance_equals_brute_force(k, dim, offset):
    rng = np.random.default_rng(k)
    target, y = (rng.standard_normal((n, dim)).astype(np.float32) + np.float32(offset) for n in (700, 90))
    expected = np.log(brute_force(target, y, k)).mean()
    density = KNNDensity(torch.from_numpy(target), k=k)
    assert density.log_distance(torch.from_numpy(y)) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert density.log_distance(y) == density.log_distance(torch.from_numpy(y))


def test_a_target_sample_counts_itself_as_its_first_neighbour():
    points = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    assert np.all(KNNDensity(points, k=1).distance(points) == KNNDensity(points, k=1).smallest_distance)
    without_itself = [brute_force(np.delete(points, i, axis=0), points[i : i + 1], 1)[0] for i in range(20)]
    np.testing.assert_allclose(KNNDensity(points, k=2).distance(points[:20]), without_itself, rtol=1e-5)


def test_log_distance_of_coinciding_points_is_finite():
    assert np.isfinite(KNNDensity(torch.ones(10, 3)).log_distance(torch.ones(2, 3)))
    assert np.isfinite(KNNDensity(torch.zeros(10, 3)).log_distance(torch.zeros(2, 3)))


def test_a_larger_target_is_thinned_by_the_seed():
    target = torch.arange(1000.0).unsqueeze(1)
    first, again, other = (KNNDensity(target, max_points=50, seed=seed).points for seed in (1, 1, 2))
    assert first.shape == (50, 1) and len(np.unique(first)) == 50
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_bfloat16_latents_with_gradients_are_accepted_and_nan_is_answered_with_nan():
    density = KNNDensity(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    assert np.isfinite(density.log_distance(torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)))
    assert np.isnan(density.log_distance(torch.full((3, 4), float("nan"))))


def test_mistakes_are_named():
    target = torch.zeros(10, 3)
    with pytest.raises(ValueError, match="between 1 and"):
        KNNDensity(target, k=11)
    with pytest.raises(ValueError, match="not finite"):
        KNNDensity(target * float("inf"))
    with pytest.raises(ValueError, match="two dimensions"):
        KNNDensity(target.unsqueeze(0))
    with pytest.raises(ValueError, match="y has 2 dimensions and the target 3"):
        KNNDensity(target).log_distance(torch.zeros(4, 2))


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        KNNDensity(torch.zeros(10, 3))


SHARED_PROCESS = """
import torch
from flowprior.metrics.knn import KNNDensity
torch.set_num_threads(2)
net = torch.nn.Linear(32, 32)
density = KNNDensity(torch.randn(5000, 32))
for _ in range(3):
    for _ in range(4):
        loss = net(torch.randn(1024, 32)).square().mean()
        for weight, gradient in zip(net.parameters(), torch.autograd.grad(loss, net.parameters())):
            weight.data -= 0.1 * gradient
    density.log_distance(net(torch.randn(500, 32)))
print("done")
"""


def test_training_and_searching_take_turns_in_one_process_without_crash_or_deadlock():
    result = subprocess.run([sys.executable, "-c", SHARED_PROCESS], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and result.stdout.strip() == "done", result.stderr
