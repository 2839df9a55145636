import runpy
from urllib.error import URLError

import pytest
import torch
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from flowprior.data.digits import digit_images
from flowprior.errors import UserError
from flowprior.metrics import extractors
from flowprior.metrics.digit_networks import load_extractor


def test_features_are_the_networks_own_however_the_images_are_batched():
    images, _ = digit_images(32)
    features, logits = load_extractor()(images[:100])
    found = extractors.extract_features(images[:100].split(17), "digits")
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    assert (found.count, found.extractor, found.features.dtype, found.logits.dtype) == (100, "digits", torch.float32, torch.float32)


def test_images_are_taken_from_a_generator_one_batch_at_a_time():
    images, _ = digit_images(32)
    taken = []

    def batches():
        for i in range(3):
            taken.append(i)
            yield images[i : i + 1]

    stream = extractors.stream_features(batches(), "digits")
    next(stream)
    assert taken == [0]


@pytest.mark.parametrize("batch", [torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8).byte(), torch.zeros(3, 8, 8).byte(), [1]])
def test_batches_other_than_uint8_rgb_are_refused(batch):
    with pytest.raises(ValueError, match="uint8"):
        extractors.extract_features([batch], "digits")


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        extractors.extract_features([], "digits")


def test_an_unknown_extractor_is_refused_with_the_known_names():
    with pytest.raises(UserError, match="digits, inception"):
        extractors.extract_features([], "vgg")


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
        extractors.extract_features([], "inception", weights_path=empty_hub / "inception.pth")
    message = one_line(caught)
    assert str(empty_hub / "inception.pth") in message and "https://github.com/toshas/torch-fidelity" in message
    assert str(empty_hub / "hub" / "checkpoints") in message and "weights_path" in message


def test_inception_weights_that_cannot_be_fetched_give_one_line(empty_hub, monkeypatch):
    def no_network(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError) as caught:
        extractors.extract_features([], "inception")
    message = one_line(caught)
    assert "weights-inception-2015-12-05-6726825d.pth" in message and "no route to host" in message and "weights_path" in message


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("code in a weight file was executed",))


@pytest.mark.parametrize("content", ["text", "pickle", "other network"])
def test_a_file_that_is_not_inception_is_refused_and_not_executed(empty_hub, content):
    path = empty_hub / "inception.pth"
    if content == "text":
        path.write_text("hello")
    else:
        torch.save(Malicious() if content == "pickle" else {"weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="damaged or no file of Inception weights"):
        extractors.load_feature_extractor("inception", weights_path=path)
