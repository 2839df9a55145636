"""ADM's random crop against a restatement of it, and over all that it may draw."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowprior.data.crops import random_crop
from flowprior.data.images import ImageConfig, open_images
from flowprior.data.order import SampleKey


def restated(image: Image.Image, size: int, side: int, top: int, left: int) -> np.ndarray:
    """The crop at a known draw: halved by boxes, resized bicubically so that the shorter side is ``side``, cut out of the array."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.size[0] * scale), round(image.size[1] * scale)), resample=Image.BICUBIC)
    return np.array(image)[top : top + size, left : left + size]


class Told:
    """A generator that gives what it is told, and remembers the ranges that it was asked for."""

    def __init__(self, *values):
        self.values, self.ranges = list(values), []

    def integers(self, low, high=None):
        self.ranges.append((0, low) if high is None else (low, high))
        return self.values.pop(0)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@settings(max_examples=40, deadline=None)
@given(st.integers(9, 90), st.integers(9, 90), st.integers(8, 20), st.data())
def test_a_crop_is_adms_at_every_draw_that_adm_could_make(height, width, size, data):
    image, largest = noise(height, width), math.ceil(size / 0.8)
    side = data.draw(st.integers(size, largest))
    halved = image
    while min(halved.size) >= 2 * side:
        halved = halved.resize((halved.width // 2, halved.height // 2), Image.BOX)
    scale = side / min(halved.size)
    tall, wide = round(halved.height * scale), round(halved.width * scale)
    top, left = data.draw(st.integers(0, tall - size)), data.draw(st.integers(0, wide - size))
    told = Told(side, top, left)
    found = np.array(random_crop(image, size, told))
    assert np.array_equal(found, restated(image, size, side, top, left))
    assert told.ranges == [(size, largest + 1), (0, tall - size + 1), (0, wide - size + 1)]


def test_at_256_px_the_shorter_side_is_any_of_256_to_320_pixels():
    told = Told(300, 0, 0)
    random_crop(noise(400, 500), 256, told)
    assert told.ranges[0] == (256, 321)


@pytest.fixture
def folder(tmp_path):
    noise(40, 60).save(tmp_path / "one.png")
    return tmp_path


def test_in_training_crops_differ_by_epoch_and_repeat_by_seed_and_for_evaluation_are_central(folder):
    config = ImageConfig(source="folder", path=str(folder), size=16, crop="random")
    images, again = open_images(config, 0), open_images(config, 0)
    crops = [images.batch([SampleKey(index=0, epoch=epoch)])["image"] for epoch in range(20)]
    assert all(torch.equal(again.batch([SampleKey(index=0, epoch=n)])["image"], crop) for n, crop in enumerate(crops))
    assert Counter(crop.numpy().tobytes() for crop in crops).most_common(1)[0][1] <= 2
    central = open_images(ImageConfig(source="folder", path=str(folder), size=16))
    plain = SampleKey(index=0, epoch=-1)
    assert torch.equal(images.batch([plain])["image"], central.batch([plain])["image"])
    assert images.fingerprint() == central.fingerprint()
