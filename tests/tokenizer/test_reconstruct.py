"""What the meters see of an autoencoder, by one whose latents can be computed by hand and which notes what it decodes."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from flowprior.data.images import ImageConfig, open_images, to_model
from flowprior.notes import forget_notes
from flowprior.run.config import build_config
from tokenizer.config import AEConfig
from tokenizer.evaluate import evaluate, reason_of
from tokenizer.reconstruct import channel_std, measure, measure_with_noise

SCALES = torch.tensor([1.0, 10.0, 0.1])  # of the three channels


class Recorder(nn.Module):
    """Latents are the 64 patches' mean colours, each channel on a scale of its own."""

    config = SimpleNamespace(channels=3)

    def __init__(self) -> None:
        super().__init__()
        self.decoded: list[torch.Tensor] = []

    def encode(self, images):
        noise = torch.rand(len(images), 3, 8, 8, generator=torch.Generator().manual_seed(0))
        return (nn.functional.avg_pool2d(images, 4) + noise).flatten(2).mT * SCALES

    def decode(self, latents):
        self.decoded.append(latents)
        return torch.zeros(len(latents), 3, 32, 32)


class Counter:
    """A meter that counts images."""

    def __init__(self) -> None:
        self.count = 0

    def update(self, original, reconstructed):
        assert original.shape == reconstructed.shape and original.dtype == reconstructed.dtype == torch.uint8
        self.count += len(original)

    def compute(self):
        return {"count": self.count}


@pytest.fixture(scope="module")
def images():
    return open_images(ImageConfig(source="digits", size=32, subset="train"))


def latents_of(images) -> torch.Tensor:
    whole = to_model(images.images)
    return torch.cat([Recorder().encode(part) for part in whole.split(128)])


def test_channel_std_is_that_of_all_tokens(images):
    expected = latents_of(images).flatten(0, 1).std(0, correction=0)
    torch.testing.assert_close(channel_std(Recorder(), images), expected, rtol=1e-4, atol=1e-6)


def test_latents_are_decoded_as_they_are(images):
    recorder = Recorder()
    assert measure(recorder, images, [Counter()]) == {"count": len(images)}
    assert torch.equal(torch.cat(recorder.decoded), latents_of(images))


def test_noise_is_a_share_of_each_channels_std_and_alike_for_all_shares_and_calls(images):
    recorder, again = Recorder(), Recorder()
    found = measure_with_noise(recorder, images, {0.1: [Counter()], 0.25: [Counter()]})
    assert found == {"count_noise_0.1": len(images), "count_noise_0.25": len(images)}
    latents, std = latents_of(images), channel_std(Recorder(), images)
    small = (torch.cat(recorder.decoded[::2]) - latents) / (0.1 * std)
    large = (torch.cat(recorder.decoded[1::2]) - latents) / (0.25 * std)
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(small.flatten(0, 1).std(0), torch.ones(3), rtol=0.02, atol=0)  # 95,872 numbers a channel
    torch.testing.assert_close(small.flatten(0, 1).mean(0), torch.zeros(3), rtol=0, atol=0.02)

    measure_with_noise(again, images, {0.25: [Counter()]})
    assert torch.equal(torch.cat(again.decoded), torch.cat(recorder.decoded[1::2]))

    given, of_tokens = Recorder(), torch.rand(latents.shape[1:], generator=torch.Generator().manual_seed(0)) + 0.5
    measure_with_noise(given, images, {0.25: [Counter()]}, std=of_tokens)
    torch.testing.assert_close((torch.cat(given.decoded) - latents) / of_tokens, small * 0.25, rtol=1e-3, atol=1e-3)


class Copy(Recorder):
    """An autoencoder that loses nothing."""

    fingerprint, about = "copy", {}

    def encode(self, images):
        return images

    def decode(self, latents):
        return latents


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_an_infinite_psnr_is_null_with_its_reason_and_foreign_images_are_said(source, tmp_path, capsys):
    for number in range(3):
        (tmp_path / "data").mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (number, 9, 9)).save(tmp_path / "data" / f"{number}.png")
    data = {"source": source, "path": str(tmp_path / "data") if source == "folder" else ""}
    config = build_config(
        AEConfig,
        {
            "data": data,
            "evaluate": {"extractor": "digits", "metrics": ["fidelity", "rfid"]},
            "train": {"loader_workers": 0},
        },
    )
    for _ in range(2):  # measured, and read again
        forget_notes()
        evaluate(config, tmp_path, Copy())
        said = capsys.readouterr()
        assert " psnr " not in said.out and "ssim 1.000" in said.out
        assert "no psnr: some image is reconstructed exactly" in said.err
        assert ("handwritten digits" in said.err) == (source == "folder")
    kept = json.loads((tmp_path / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert kept["metrics"]["psnr"] is None and kept["not_measured"].keys() == {"psnr"}
    assert kept["protocol"]["reference"] == {"images": "the originals", "size": "32 x 32", "crop": "centre"}


def test_an_rfid_of_one_image_is_no_number_and_says_why():
    assert reason_of("rfid", float("nan")) == "fewer than two images"
    assert reason_of("lpips", float("nan")) == "its value is nan"
