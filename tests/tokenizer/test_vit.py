import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torchvision.transforms import Normalize

from flowprior.errors import UserError
from flowprior.pretrained.timm_encoder import whole_patches
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.features.timm import TimmFeatures
from tokenizer.vit import ViTConfig, build_vit

NAME = "vit_tiny_patch16_224"
DEEP = "vit_small_patch14_dinov2"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Random weights in the file formats that pretrained ones come in, at the model's own sizes."""
    torch.manual_seed(0)
    weights = timm.create_model(NAME).state_dict()  # with a head, as published
    folder = tmp_path_factory.mktemp("weights")
    save_file(weights, folder / "model.safetensors")
    torch.save(weights, folder / "model.pth")
    return folder, weights


def config(folder, suffix="safetensors", **sizes) -> AutoencoderConfig:
    vit = ViTConfig(NAME, pretrained=True, weights=str(folder / f"model.{suffix}"))
    plain = ViTConfig(width=24, depth=1, heads=3)
    return AutoencoderConfig(32, 8, 4, 3, encoder=vit, decoder=plain, **sizes)


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_pretrained_weights_from_a_file_are_taken_with_patches_and_positions_resampled_by_timm(published, suffix):
    folder, weights = published
    built = Autoencoder(config(folder, suffix)).encoder.vit.state_dict()
    expected = {name: value for name, value in weights.items() if not name.startswith("head.")}
    expected["patch_embed.proj.weight"] = resample_patch_embed(expected["patch_embed.proj.weight"], [8, 8])
    expected["pos_embed"] = resample_abs_pos_embed(expected["pos_embed"], [4, 4])
    assert built.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(built[name], value), name


def test_a_pretrained_encoder_sees_images_normalised_as_its_weights_want_them(published):
    autoencoder = Autoencoder(config(published[0], input_mean=(0.485, 0.456, 0.406), input_std=(0.229, 0.224, 0.225)))
    seen = []
    autoencoder.encoder.vit.patch_embed.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    unit = torch.rand(2, 3, 32, 32)
    autoencoder.encode(unit * 2 - 1)
    torch.testing.assert_close(seen[0], Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(unit))


@pytest.mark.parametrize(
    "name, pretrained, mean",
    [
        (f"{DEEP}.lvd142m", True, (0.485, 0.456, 0.406)),
        (f"{DEEP}.lvd142m", False, (0.5,) * 3),
        (NAME, True, (0.5,) * 3),
    ],
)
def test_without_numbers_the_normalisation_is_that_of_the_pretrained_weights(name, pretrained, mean):
    assert AutoencoderConfig(encoder=ViTConfig(name, pretrained)).input_statistics()[0] == mean


def test_a_saved_autoencoder_keeps_the_normalisation_that_its_pretrained_encoder_had(published, tmp_path):
    autoencoder = Autoencoder(config(published[0], input_mean=(0.4, 0.5, 0.6), input_std=(0.2, 0.3, 0.4))).eval()
    autoencoder.save(tmp_path)
    loaded, images = Autoencoder.load(tmp_path), torch.rand(1, 3, 32, 32)
    assert loaded.config.encoder.pretrained is False and loaded.config.encoder.weights == ""
    assert torch.equal(loaded.encode(images), autoencoder.encode(images))


def test_weights_that_are_not_here_are_one_sentence_with_file_source_and_places(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError) as caught:
        build_vit(ViTConfig(f"{DEEP}.lvd142m", pretrained=True), 32, 8)
    said = str(caught.value)
    assert "\n" not in said
    for word in ("model.safetensors", f"huggingface.co/timm/{DEEP}.lvd142m", "HF_HOME", "weights=<path>"):
        assert word in said


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


DAMAGE = {
    "missing.safetensors": lambda file: None,
    "missing.pth": lambda file: None,
    "cut.safetensors": lambda file: file.write_bytes(b"\x10\x00\x00"),
    "pickled.pth": lambda file: file.write_bytes(pickle.dumps(Evil())),
    "other.safetensors": lambda file: save_file({"blocks.0.norm1.weight": torch.zeros(7)}, file),
    "list.pth": lambda file: torch.save([torch.zeros(2)], file),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_file_without_the_models_weights_is_refused_and_named(tmp_path, name, capsys):
    file = tmp_path / name
    DAMAGE[name](file)
    with pytest.raises(UserError, match=name) as caught:
        build_vit(ViTConfig(NAME, pretrained=True, weights=str(file)), 32, 8)
    assert "\n" not in str(caught.value) and "code was run" not in capsys.readouterr().out


def test_a_file_without_asking_for_pretrained_weights_is_refused():
    with pytest.raises(ValueError, match="pretrained=true"):
        ViTConfig(NAME, weights="model.safetensors")


def gradients(again: bool) -> dict[str, torch.Tensor]:
    vit = ViTConfig(width=24, depth=2, heads=3)
    torch.manual_seed(0)
    autoencoder = Autoencoder(AutoencoderConfig(16, 8, 2, 3, encoder=vit, decoder=vit, checkpoint_blocks=again))
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    autoencoder(images)[0].square().mean().backward()
    return {name: p.grad for name, p in autoencoder.named_parameters()}


def test_computing_blocks_again_changes_no_gradient():
    kept, again = gradients(False), gradients(True)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_computing_blocks_again_keeps_fewer_activations():
    def kept_bytes(again: bool) -> int:
        vit = ViTConfig(width=48, depth=3, heads=3)
        autoencoder = Autoencoder(AutoencoderConfig(16, 8, 2, 3, encoder=vit, decoder=vit, checkpoint_blocks=again))
        sizes = []
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t)
        with hooks:
            autoencoder(torch.rand(2, 3, 16, 16))
        return sum(sizes)

    assert kept_bytes(True) < kept_bytes(False) / 3


def vit_parameters(width: int, depth: int, patches: int, patch: int, embeds: bool = True) -> int:
    """Of a DINOv2 transformer without a head: layer scale, biases everywhere, a class token with a position."""
    block = 4 * width**2 + 4 * width + 8 * width**2 + 5 * width + 4 * width + 2 * width
    embedding = 3 * patch**2 * width + width if embeds else 0
    return depth * block + embedding + width + (patches + 1) * width + 2 * width


@pytest.mark.parametrize("size, width, depth", [("small", 384, 12), ("base", 768, 12), ("large", 1024, 24)])
def test_an_autoencoder_of_any_size_has_the_parameters_of_its_two_transformers_and_its_projections(size, width, depth):
    vit = ViTConfig(f"vit_{size}_patch14_dinov2.lvd142m")
    with torch.device("meta"):
        autoencoder = Autoencoder(AutoencoderConfig(256, 16, 64, 32, encoder=vit, decoder=vit))
    transformers = vit_parameters(width, depth, 256, 16) + vit_parameters(width, depth, 256, 16, embeds=False)
    tokens = 64 * width + 64 * width + width
    projections = (width + 1) * 32 + (32 + 1) * width + (width + 1) * 3 * 16**2
    assert sum(p.numel() for p in autoencoder.parameters()) == transformers + tokens + projections


def test_encoder_and_decoder_are_chosen_separately():
    with torch.device("meta"):
        autoencoder = Autoencoder(
            AutoencoderConfig(encoder=ViTConfig(f"{DEEP}.lvd142m"), decoder=ViTConfig(width=24, depth=1, heads=3))
        )
    assert (autoencoder.encoder.vit.embed_dim, autoencoder.decoder.vit.embed_dim) == (384, 24)


@pytest.mark.parametrize(
    "size, patch, whole", [(40, 16, 48), (39, 16, 32), (224, 14, 224), (224, 16, 224), (225, 14, 224), (5, 16, 16)]
)
def test_the_nearest_multiple_of_a_patch_is_the_larger_of_two(size, patch, whole):
    assert whole_patches(size, patch) == whole


def test_frozen_features_of_a_size_that_patches_do_not_divide_see_every_pixel_and_the_size_is_said(capsys):
    features = TimmFeatures("test_vit", pretrained=False, size=40).build(40)
    assert "images are resized to 48 px for 'test_vit', not 40: its patches have 16 px" in capsys.readouterr().err
    images = torch.rand(1, 3, 40, 40, requires_grad=True)
    with torch.enable_grad():
        tokens = features.frozen(images * 2 - 1)
    assert tokens.shape[1] == features.frozen.vit.num_prefix_tokens + 9
    tokens.square().sum().backward()
    assert (images.grad.abs().sum((0, 1)) > 0).all()
    TimmFeatures("test_vit", pretrained=False, size=32).build(32)
    assert capsys.readouterr().err == ""
