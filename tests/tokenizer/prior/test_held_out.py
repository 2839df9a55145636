import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowprior.data.features import FeatureRows
from flowprior.data.order import SampleKey
from flowprior.errors import UserError
from flowprior.run.config import build_config
from tokenizer.prior.held_out import split_rows
from tokenizer.prior.targets import TargetFeatures
from tokenizer.prior.train_flowhead import FlowPriorConfig, make_target_map


@given(
    samples=st.integers(6, 60),
    per_sample=st.integers(1, 9),
    short=st.integers(0, 8),
    share=st.floats(0.01, 0.6),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_every_row_is_on_one_side_and_no_sample_on_both(samples, per_sample, short, share, seed):
    count = samples * per_sample - min(short, per_sample - 1)
    split = split_rows(count, share, seed, per_sample)
    assert sorted(split.train.tolist() + split.held_out.tolist()) == list(range(count))
    assert not set((split.train // per_sample).tolist()) & set((split.held_out // per_sample).tolist())
    assert len((split.held_out // per_sample).unique()) == max(1, round(share * samples))


def test_the_split_is_a_function_of_the_seed():
    assert torch.equal(split_rows(100, 0.2, 1).held_out, split_rows(100, 0.2, 1).held_out)
    assert not torch.equal(split_rows(100, 0.2, 1).held_out, split_rows(100, 0.2, 2).held_out)


@pytest.mark.parametrize("count, share, per_sample", [(10, 0.99, 1), (8, 0.5, 8), (2, 0.5, 1)])
def test_a_share_that_leaves_nothing_to_train_on_is_refused(count, share, per_sample):
    with pytest.raises(UserError, match="held_out=0"):
        split_rows(count, share, 0, per_sample)


@pytest.mark.parametrize("share", [-0.1, 1.0, 2])
def test_a_share_outside_the_unit_interval_is_refused(share):
    with pytest.raises(UserError, match="held_out is a share"):
        build_config(FlowPriorConfig, {"held_out": share})


def test_held_out_rows_reach_neither_the_normalisation_nor_a_batch():
    features = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    split = split_rows(300, 0.3, 0)
    poisoned = features.clone()
    poisoned[split.held_out] = float("nan")
    config = build_config(FlowPriorConfig, {"channels": 3, "held_out": 0.3})
    clean, other = (make_target_map(config, TargetFeatures(table, "t"), split) for table in (features, poisoned))
    assert torch.equal(clean.mean, other.mean) and torch.equal(clean.std, other.std) and torch.isfinite(other.std)
    rows = FeatureRows(poisoned, split.train)
    assert len(rows) == 210 and torch.isfinite(rows.batch([SampleKey(i, 0) for i in range(210)])["features"]).all()


def test_without_a_share_every_row_is_trained_on():
    split = split_rows(9, 0.0, 0)
    assert split == (None, None)
    assert sorted(split.draw_train(99, 9, torch.Generator().manual_seed(0)).tolist()) == list(range(9))
