"""Features for sFID and FD: real architectures with random weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from flowprior.errors import UserError
from flowprior.metrics import ImageSet, Statistics, evaluate_generation, extractors
from flowprior.metrics.registry import EXTRACTORS, ExtractorSpec

IMAGES = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory):
    """A file as torch-fidelity's, with random weights."""
    network = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    original = torch.load
    torch.manual_seed(0)
    try:  # the constructor loads a file: hand it the weights that it has just drawn
        torch.load = lambda *_, **__: network.state_dict()
        network.__init__("inception-v3-compat", ["2048"], feature_extractor_weights_path="none")
    finally:
        torch.load = original
    torch.save(network.state_dict(), path)
    return path


def test_spatial_features_are_seven_channels_of_a_17_by_17_map_in_adms_order(inception_weights):
    extractor = extractors.Extractor("inception_spatial", weights_path=inception_weights)
    found = extractor(IMAGES[:2]).fid.view(2, 17, 17, 7)
    seen = []
    whole = extractors.Extractor("inception", weights_path=inception_weights).module
    whole.Mixed_6d.register_forward_hook(lambda module, inputs, output: seen.append(output))
    whole(IMAGES[:2])
    torch.testing.assert_close(found, seen[0][:, :7].permute(0, 2, 3, 1))  # the 1 x 1 branch comes first in the block


def moments(mean: float, deviation: float, extractor: str | None = None) -> Statistics:
    return Statistics(np.full(4, float(mean)), np.eye(4) * deviation**2, 50, extractor)


@pytest.mark.parametrize("reference_as", ["images", "moments"])
def test_sfid_compares_the_spatial_moments(reference_as):
    inception, spatial = extractors.Extractor("inception"), moments(1.0, 3.0, "inception_spatial")
    generated = ImageSet(IMAGES, inception, known={"inception_spatial": moments(0.5, 1.0, "inception_spatial")})
    reference = Statistics(np.zeros(4), np.eye(4), spatial=spatial)
    if reference_as == "images":
        reference = ImageSet(IMAGES, inception, known={"inception_spatial": spatial})
    expected = 4 * (0.5**2 + 2.0**2)
    assert evaluate_generation(generated, reference, ["sfid"])["sfid"] == pytest.approx(expected)


def test_adms_spatial_moments_are_read_and_a_reference_without_them_is_refused(tmp_path):
    first, second = moments(0, 1), moments(2, 3)
    np.savez(tmp_path / "adm.npz", mu=first.mu, sigma=first.sigma, mu_s=second.mu, sigma_s=second.sigma)
    read = Statistics.load(tmp_path / "adm.npz")
    assert (read.spatial.extractor, read.extractor) == ("inception_spatial", None)
    np.testing.assert_array_equal(read.spatial.sigma, second.sigma)
    with pytest.raises(UserError, match="no moments of inception_spatial"):
        evaluate_generation(ImageSet(IMAGES, extractors.Extractor("inception")), first, ["sfid"])
    np.savez(tmp_path / "bad.npz", mu=first.mu, sigma=first.sigma, mu_s=second.mu, sigma_s=np.eye(3))
    with pytest.raises(UserError, match="mu_s and sigma_s of .*bad.npz disagree"):
        Statistics.load(tmp_path / "bad.npz")


class TinyDINO(extractors.DINOv2FeatureExtractor):
    MODEL, SIDE = "vit_tiny_patch16_224", 32


def test_fd_dinov2_is_the_distance_of_the_features_of_timms_network(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(TinyDINO.MODEL, img_size=32, num_classes=0).eval()
    weights = tmp_path / "tiny.pth"
    torch.save(network.state_dict(), weights)
    monkeypatch.setitem(extractors.FEATURE_EXTRACTORS_REGISTRY, "tiny-dino", TinyDINO)
    monkeypatch.setitem(EXTRACTORS, "dinov2", ExtractorSpec("tiny-dino", "1024", "1024", "1024"))
    extractor = extractors.Extractor("dinov2", weights_path=weights)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (TinyDINO.MEAN, TinyDINO.STD))
    for images in (IMAGES, IMAGES[..., :32, :32], F.interpolate(IMAGES.float(), (45, 40)).byte()):
        pixels = F.interpolate(images / 255, (32, 32), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.no_grad():
            assert torch.equal(extractor(images).fid, network((pixels - mean) / std))  # to the bit


def test_dinov2_weights_that_cannot_be_had_give_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(extractors.FEATURE_EXTRACTORS_REGISTRY, "timm-dinov2-vit-l-14", TinyDINO)
    (tmp_path / "bad.safetensors").write_text("no weights")
    with pytest.raises(UserError) as caught:
        _ = extractors.Extractor("dinov2", weights_path=tmp_path / "bad.safetensors").module
    assert TinyDINO.MODEL in str(caught.value) and "\n" not in str(caught.value)
