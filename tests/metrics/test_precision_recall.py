import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_fidelity.metric_prc import prc_features_to_metric

from flowprior.metrics.precision_recall import manifold_members


def slowly(first: torch.Tensor, second: torch.Tensor, k: int) -> tuple[list[bool], list[bool]]:
    """Point by point, in float64."""
    first, second = first.double(), second.double()

    def radius(points, i):
        return sorted((points[i] - p).norm().item() for n, p in enumerate(points) if n != i)[k - 1]

    def inside(point, points):
        return any((point - p).norm().item() <= radius(points, i) for i, p in enumerate(points))

    return [inside(p, second) for p in first], [inside(p, first) for p in second]


@settings(deadline=None, max_examples=25)
@given(
    st.integers(0, 10_000), st.integers(4, 14), st.integers(4, 14), st.integers(1, 3), st.sampled_from([1, 3, 8, 100])
)
def test_blocks_of_any_size_find_the_members_that_the_definition_names(seed, n, m, k, block):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(n, 2, generator=generator), torch.randn(m, 2, generator=generator) + 0.5
    found = manifold_members(first, second, k, block=block)
    assert [part.tolist() for part in found] == [list(part) for part in slowly(first, second, k)]


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_shares_are_torch_fidelitys_own(offset):
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(700, 6, generator=generator) + offset, torch.randn(500, 6, generator=generator) * 1.2
    second += offset
    theirs = prc_features_to_metric(first, second, prc_neighborhood=3, verbose=False)
    one, other = manifold_members(first, second, block=128)
    assert one.float().mean().item() == pytest.approx(theirs["precision"], abs=0.003)
    assert other.float().mean().item() == pytest.approx(theirs["recall"], abs=0.003)
