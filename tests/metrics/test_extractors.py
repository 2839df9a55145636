import runpy
from urllib.error import URLError

import pytest
import torch
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from flowprior.data.embedded import digit_images
from flowprior.errors import UserError
from flowprior.metrics import ImageSet, evaluate_generation, extractors, missing_weights
from flowprior.metrics.digit_networks import load_extractor
from flowprior.metrics.registry import ExtractorSpec
from flowprior.run.files import write_tensors
from known_features import OfFeatures


def extract(batches, name: str = "digits", **options) -> extractors.Features:
    return ImageSet(lambda: batches, extractors.Extractor(name, **options)).features()


def test_features_are_the_networks_own_however_the_images_are_batched():
    images, _ = digit_images(32)
    features, logits = load_extractor("digits")(images[:100])
    found = extract(images[:100].split(17))
    torch.testing.assert_close(found.fid, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert found.prc is found.fid and found.subset(torch.arange(3)).count == 3
    assert (found.count, found.extractor, found.fid.dtype, found.logits.dtype) == (
        100,
        "digits",
        torch.float32,
        torch.float32,
    )


def test_fid_and_precision_may_look_at_different_layers(monkeypatch):
    monkeypatch.setitem(extractors.EXTRACTORS, "digits", ExtractorSpec("digits-cnn", "64", "logits", "logits"))
    images, _ = digit_images(32)
    found = extract([images[:20], images[20:50]])
    assert found.fid.shape == (50, 64) and torch.equal(found.prc, found.logits)
    assert torch.equal(found.subset(torch.arange(5)).prc, found.logits[:5])
    result = evaluate_generation(
        ImageSet(images[:50], extractors.Extractor("digits")), OfFeatures(found), ["fid", "precision_recall"]
    )
    assert result["precision"] == result["recall"] == 1 and abs(result["fid"]) < 1e-4


@pytest.mark.parametrize(
    "batch", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8).byte(), torch.zeros(3, 8, 8).byte(), [1]]
)
def test_batches_other_than_uint8_rgb_are_refused(batch):
    with pytest.raises(ValueError, match="uint8"):
        extract([batch])


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        extract([])


def test_an_unknown_extractor_is_refused_with_the_known_names():
    with pytest.raises(UserError, match="digits, mnist, inception"):
        extractors.Extractor("vgg")


def test_the_fingerprint_is_that_of_the_weights_wherever_they_lie(tmp_path):
    weights = load_extractor("digits").state_dict()
    write_tensors(tmp_path / "same.safetensors", weights)
    write_tensors(tmp_path / "other.safetensors", weights | {"head.bias": weights["head.bias"] + 1})
    usual, same, other = (
        extractors.Extractor("digits", weights_path=path).fingerprint
        for path in (None, tmp_path / "same.safetensors", tmp_path / "other.safetensors")
    )
    assert usual == same != other


def test_a_second_execution_of_the_module_registers_nothing_twice():
    before = FEATURE_EXTRACTORS_REGISTRY["digits-cnn"]
    runpy.run_path(extractors.__file__)
    assert FEATURE_EXTRACTORS_REGISTRY["digits-cnn"] is before


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_named_file_of_inception_weights_that_is_missing_gives_one_line(empty_hub):
    with pytest.raises(UserError) as caught:
        _ = extractors.Extractor("inception", weights_path=empty_hub / "inception.pth").module
    message = one_line(caught)
    assert str(empty_hub / "inception.pth") in message and "https://github.com/toshas/torch-fidelity" in message
    assert str(empty_hub / "hub" / "checkpoints") in message and "weights_path" in message


def test_inception_weights_that_cannot_be_fetched_give_one_line(empty_hub, monkeypatch):
    def no_network(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError) as caught:
        _ = extractors.Extractor("inception").fingerprint
    message = one_line(caught)
    assert (
        "weights-inception-2015-12-05-6726825d.pth" in message
        and "no route to host" in message
        and "weights_path" in message
    )


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("code in a weight file was executed",))


@pytest.mark.parametrize(
    ("content", "said"),
    [("text", "is damaged"), ("pickle", "holds Python objects"), ("other network", "is no file of Inception weights")],
)
def test_a_file_that_is_not_inception_is_refused_and_not_executed(empty_hub, content, said):
    path = empty_hub / "inception.pth"
    if content == "text":
        path.write_text("hello")
    else:
        torch.save(Malicious() if content == "pickle" else {"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=said):
        _ = extractors.Extractor("inception", weights_path=path).module


def test_weights_that_cannot_be_had_are_told_before_they_are_needed(tmp_path):
    assert missing_weights(extractors.Extractor("digits")) == ""
    told = missing_weights(extractors.Extractor("inception", weights_path=tmp_path / "none.pth"))
    assert "none.pth" in told and "evaluate.weights" in told and "\n" not in told
