import pytest
import torch
from torch import nn

from flowprior.data.embedded import EMBEDDED, digit_images
from flowprior.errors import UserError
from flowprior.metrics import digit_networks
from flowprior.metrics.digit_networks import load_extractor, load_judge, recognised_share
from flowprior.run.files import write_tensors


def kinds(network: nn.Module) -> set[type]:
    return {type(module) for module in network.modules() if not list(module.children())}


@pytest.mark.parametrize("data", EMBEDDED)
def test_judge_and_extractor_recognise_the_real_images(data):
    images, labels = EMBEDDED[data].images(32)
    assert recognised_share(data, images, labels) > 0.985
    _, logits = load_extractor(data)(images)
    assert (logits.argmax(1) == labels).float().mean() > 0.985


def test_the_two_data_sets_have_networks_of_their_own():
    for name in digit_networks.NETWORKS:
        files = {digit_networks.weights_file(data, name) for data in EMBEDDED}
        assert len({file.read_bytes() for file in files}) == len(EMBEDDED)


def test_noise_and_wrong_labels_are_not_recognised():
    images, labels = digit_images(32)
    noise = torch.randint(0, 256, (500, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert recognised_share("digits", noise, labels[:500]) < 0.35
    assert recognised_share("digits", images[:500], (labels[:500] + 1) % 10) < 0.02


def test_judge_and_extractor_share_no_kind_of_layer_but_the_linear_head():
    assert kinds(load_judge("digits")) & kinds(load_extractor("digits")) == {nn.Linear}


def test_networks_are_frozen_and_give_the_same_answer_at_any_batch_size():
    images, _ = digit_images(32)
    for network in (load_extractor("digits"), load_judge("digits")):
        assert not network.training and not any(p.requires_grad for p in network.parameters())
        outputs = [network(images[:7]), *([network(images[i : i + 1]) for i in range(7)])]
        whole, *single = [output[1] if isinstance(output, tuple) else output for output in outputs]
        torch.testing.assert_close(whole, torch.cat(single), rtol=1e-4, atol=1e-4)


def test_larger_pictures_of_the_digits_are_recognised_too():
    images, labels = digit_images(64)
    assert recognised_share("digits", images[:400], labels[:400]) > 0.985


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 32, 32, dtype=torch.uint8)])
def test_other_dtypes_and_channels_are_refused(images):
    with pytest.raises(ValueError, match="uint8"):
        load_judge("digits")(images)


def test_missing_weights_name_the_file_and_the_command(tmp_path):
    with pytest.raises(UserError, match=r"none\.safetensors.*python -m flowprior\.metrics\.digit_networks"):
        load_judge("digits", tmp_path / "none.safetensors")


@pytest.mark.parametrize("damage", ["text", "cut", "other network"])
def test_bad_weights_name_the_file_and_the_command(tmp_path, damage):
    path = tmp_path / "bad.safetensors"
    good = digit_networks.weights_file("digits", "extractor").read_bytes()
    path.write_bytes({"text": b"hello", "cut": good[:-100], "other network": good}[damage])
    with pytest.raises(UserError, match=r"bad\.safetensors.*python -m flowprior\.metrics\.digit_networks") as caught:
        load_judge("digits", path)
    assert "\n" not in str(caught.value)


def test_training_is_a_function_of_its_arguments_and_leaves_the_global_generator_alone(tmp_path):
    before = torch.get_rng_state()
    first, second = (digit_networks.train("digits", "judge", torch.arange(128), epochs=2) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    write_tensors(tmp_path / "w" / "judge.safetensors", first.state_dict())
    loaded = load_judge("digits", tmp_path / "w" / "judge.safetensors").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in first.state_dict().items())


def test_weight_files_are_small():
    files = [digit_networks.weights_file(data, name) for data in EMBEDDED for name in digit_networks.NETWORKS]
    assert all(file.stat().st_size < 300_000 for file in files)
