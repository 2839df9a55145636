import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from flowprior.data.embedded import digit_images, split_indices

COUNT = 1797


def test_at_their_own_size_the_digits_are_scikit_learns_pixels_and_labels():
    bunch = load_digits()
    images, labels = digit_images(8)
    expected = np.round(bunch.images / 16 * 255).astype(np.uint8)
    assert images.dtype == torch.uint8 and images.shape == (1797, 3, 8, 8)
    assert all(np.array_equal(images[:, channel].numpy(), expected) for channel in range(3))
    assert np.array_equal(labels.numpy(), bunch.target)


def test_enlarged_digits_keep_their_picture_and_use_the_whole_range():
    small, large = (digit_images(size)[0][:, 0].double() for size in (8, 32))
    means = large.unfold(1, 4, 4).unfold(2, 4, 4).mean((-1, -2))  # (N, 8, 8)
    assert torch.corrcoef(torch.stack([means.flatten(), small.flatten()]))[0, 1] > 0.99
    assert large.min() == 0 and large.max() == 255


@pytest.mark.parametrize("seed, fraction", [(0, 0.2), (7, 0.2), (0, 0.5)])
def test_train_and_val_are_disjoint_and_together_all(seed, fraction):
    train, val = (split_indices(COUNT, subset, seed, fraction) for subset in ("train", "val"))
    assert len(val) == round(COUNT * fraction)
    assert torch.equal(torch.cat([train, val]).sort().values, split_indices(COUNT, "all"))
    assert torch.equal(train, train.sort().values) and torch.equal(val, val.sort().values)


def test_the_split_is_a_function_of_its_seed():
    assert torch.equal(split_indices(COUNT, "val", 3), split_indices(COUNT, "val", 3))
    assert not torch.equal(split_indices(COUNT, "val", 3), split_indices(COUNT, "val", 4))
    with pytest.raises(ValueError, match="all, train or val"):
        split_indices(COUNT, "test")
