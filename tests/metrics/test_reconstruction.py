import math

import pytest
import torch
import torch.nn.functional as F

from flowprior.data.embedded import digit_images
from flowprior.metrics.reconstruction import ReconstructionMeter, psnr, ssim


def test_identical_images_have_infinite_psnr_and_ssim_one():
    images = digit_images(32)[0][:8]
    assert psnr(images, images) == math.inf
    assert ssim(images, images) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("offset", [1, 16, 255])
def test_a_constant_offset_has_the_psnr_of_its_square(offset):
    dark = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    assert psnr(dark, dark + offset) == pytest.approx(20 * math.log10(255 / offset), abs=1e-4)


def test_constant_images_have_the_ssim_of_their_luminance_term():
    a, b, c1 = 0.25, 0.75, 0.01**2
    x, y = (torch.full((2, 3, 32, 32), value) for value in (a, b))
    assert ssim(x, y) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-3)


def test_psnr_is_the_mean_of_the_images_psnr_and_not_the_psnr_of_the_mean_error():
    x = torch.zeros(2, 3, 32, 32)
    y = torch.stack([torch.full((3, 32, 32), 0.1), torch.full((3, 32, 32), 0.01)])
    assert psnr(x, y) == pytest.approx((20 + 40) / 2, abs=1e-3)


def test_uint8_and_unit_floats_give_the_same_numbers():
    images = digit_images(32)[0]
    x, y = images[:4], images[4:8]
    assert psnr(x, y) == pytest.approx(psnr(x.float() / 255, y), abs=1e-4)
    assert ssim(x, y) == pytest.approx(ssim(x, y.float() / 255), abs=1e-5)


def test_other_ranges_dtypes_and_shapes_are_refused():
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        psnr(x, x - 1)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        psnr(x, x * math.nan)
    with pytest.raises(ValueError, match="int64"):
        psnr(x.long(), x)
    with pytest.raises(ValueError, match="one shape"):
        ssim(x, torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match="uint8"):
        ReconstructionMeter().update(x, x)


def test_the_meter_over_uneven_batches_equals_all_images_at_once():
    images = digit_images(32)[0]
    x, y = images[:30], images[30:60]
    meter = ReconstructionMeter()
    for a, b in zip(x.split(13), y.split(13)):
        meter.update(a, b)
    result = meter.compute()
    assert result["count"] == 30
    assert result["psnr"] == pytest.approx(psnr(x, y), abs=1e-4)
    assert result["ssim"] == pytest.approx(ssim(x, y), abs=1e-5)
    assert math.isnan(ReconstructionMeter().compute()["psnr"])


def test_ssim_is_that_of_float32_convolutions_whatever_is_allowed_around_it(monkeypatch):
    """PyTorch lets a GPU's convolutions have TF32. Inputs rounded to its ten bits give 0.90 where 0.99 is right, on smooth images."""
    seen, convolution = [], F.conv2d

    def watched(*arguments, **options):
        seen.append((torch.backends.cudnn.allow_tf32, torch.is_autocast_enabled("cpu")))
        return convolution(*arguments, **options)

    smooth = (160 + 30 * torch.linspace(0, 6, 64).sin().expand(2, 3, 64, 64)).round().to(torch.uint8)
    noisy = smooth + torch.randint(0, 3, smooth.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    plain = ssim(smooth, noisy)
    monkeypatch.setattr(F, "conv2d", watched)
    before = torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        assert ssim(smooth, noisy) == plain
    assert seen and set(seen) == {(False, False)} and torch.backends.cudnn.allow_tf32 == before and plain > 0.9
