import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.distributions import Normal

from flowprior.errors import UserError
from flowprior.run.files import write_tensors
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig, build_vit

PLAIN = ViTConfig(width=24, depth=2, heads=3)
VITS = {
    "plain": PLAIN,
    "class token": ViTConfig(name="vit_tiny_patch16_224"),
    "DINOv2, registers": ViTConfig(name="vit_small_patch14_reg4_dinov2"),
}


def make(vit: ViTConfig = PLAIN, gaussian: bool = False, image_size: int = 32) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(
        AutoencoderConfig(
            image_size=image_size, patch_size=8, tokens=5, channels=3, gaussian=gaussian, encoder=vit, decoder=vit
        )
    )


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("vit", VITS.values(), ids=VITS)
@pytest.mark.parametrize("gaussian", [False, True])
def test_shapes_fit_and_every_parameter_gets_a_gradient(images, vit, gaussian):
    autoencoder = make(vit, gaussian)
    reconstruction, encoded = autoencoder(images, torch.randn(2, 5, 3) if gaussian else None)
    assert reconstruction.shape == images.shape
    assert encoded.latents.shape == encoded.mean.shape == (2, 5, 3)
    assert (encoded.logvar.shape == (2, 5, 3)) if gaussian else encoded.logvar is None
    reconstruction.square().mean().backward()
    assert [name for name, p in autoencoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("vit", VITS.values(), ids=VITS)
def test_an_image_does_not_see_the_others_of_its_batch(images, vit):
    autoencoder = make(vit).eval()
    with torch.no_grad():
        together, alone = autoencoder.encode(images), autoencoder.encode(images[1:])
        torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(autoencoder.decode(together)[1:], autoencoder.decode(alone), rtol=1e-4, atol=1e-5)


def test_decoded_patches_stand_where_the_encoder_reads_them():
    autoencoder = make()
    pixels = torch.randn(2, 16, 3 * 8 * 8)
    autoencoder.decoder.to_pixels = torch.nn.Module()
    autoencoder.decoder.to_pixels.forward = lambda x: pixels
    decoded = autoencoder.decode(torch.zeros(2, 5, 3))
    expected = torch.empty(2, 3, 32, 32)
    for patch in range(16):
        row, column = divmod(patch, 4)
        for y in range(8):
            for x in range(8):
                expected[:, :, 8 * row + y, 8 * column + x] = pixels[:, patch, 3 * (8 * y + x) : 3 * (8 * y + x) + 3]
    assert torch.equal(decoded, expected)

    embed = autoencoder.encoder.vit.patch_embed
    with torch.no_grad():
        changed = expected.clone()
        changed[:, :, 8:16, 24:32] += 1
        moved = (embed(changed) - embed(expected)).abs().sum(-1).gt(1e-4).nonzero()[:, 1]
    assert moved.tolist() == [7, 7]


@pytest.mark.parametrize("gaussian", [False, True])
def test_a_saved_autoencoder_gives_the_same_outputs_and_fingerprint(tmp_path, images, gaussian):
    autoencoder = make(gaussian=gaussian)
    autoencoder.about = {"prior": "abc", "latent_std": 1.5}
    autoencoder.save(tmp_path)
    loaded = Autoencoder.load(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert (
        loaded.fingerprint == autoencoder.fingerprint
        and loaded.about == autoencoder.about
        and loaded.config == autoencoder.config
    )
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images)[0], autoencoder.eval()(images)[0])
        next(loaded.parameters()).view(-1)[0] += 1
    assert loaded.fingerprint != autoencoder.fingerprint


def test_pretrained_weights_are_not_asked_for_when_a_saved_autoencoder_is_loaded(tmp_path):
    autoencoder = make(ViTConfig(name="vit_tiny_patch16_224"))
    autoencoder.config.encoder.pretrained = True
    autoencoder.save(tmp_path)
    assert Autoencoder.load(tmp_path).config.encoder.pretrained is False


DAMAGE = {
    "no folder": lambda folder: [file.unlink() for file in folder.iterdir()],
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "truncated weights": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-9]
    ),
    "other weights": lambda folder: write_tensors(
        folder / "model.safetensors",
        {name: value + 1 for name, value in load_file(folder / "model.safetensors").items()},
    ),
    "no JSON": lambda folder: (folder / "config.json").write_text("{"),
    "other format": lambda folder: (folder / "config.json").write_text('{"format": 99}'),
    "strange about": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace("{}", "[1]")
    ),
    "no sizes": lambda folder: (folder / "config.json").write_text('{"format": 1}'),
    "other sizes": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"width": 24', '"width": 27')
    ),
    "unknown option": lambda folder: (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"width"', '"widht"')
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_autoencoder_is_refused_and_named(tmp_path, damage):
    make().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=str(tmp_path)):
        Autoencoder.load(tmp_path)


def test_the_posterior_has_the_mean_and_deviation_that_the_encoder_says(images):
    autoencoder = make(gaussian=True).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        autoencoder.encoder.to_latent.bias[3:] = torch.tensor([-2.0, 0.0, 1.0])
        copies = images[:1].expand(4000, -1, -1, -1)
        parts = [
            autoencoder.posterior(part, torch.randn(len(part), 5, 3, generator=generator)) for part in copies.split(500)
        ]
    latents = torch.cat([part.latents for part in parts])
    mean, std = parts[0].mean[0], (0.5 * parts[0].logvar[0]).exp()
    posterior = Normal(mean, std)
    assert ((latents.mean(0) - posterior.mean).abs() < 4.5 * posterior.stddev / 4000**0.5).all()
    torch.testing.assert_close(latents.var(0), posterior.variance, rtol=0.12, atol=0)


def test_what_is_cached_is_the_mean(images):
    autoencoder = make(gaussian=True)
    encoded = autoencoder.posterior(images, torch.ones(2, 5, 3))
    assert torch.equal(autoencoder.encode(images), encoded.mean) and not torch.equal(encoded.latents, encoded.mean)


@pytest.mark.parametrize("name", ["vit_bogus_patch16", "resnet18", "not/a/model"])
def test_a_name_that_is_no_vit_is_refused(name):
    with pytest.raises(UserError, match=name):
        build_vit(ViTConfig(name=name), 32, 8)


@pytest.mark.parametrize("values", [{"image_size": 30}, {"tokens": 0}, {"channels": 0}])
def test_sizes_that_do_not_fit_are_refused(values):
    with pytest.raises(ValueError):
        AutoencoderConfig(**values)
    with pytest.raises(ValueError, match="heads"):
        ViTConfig(width=25, heads=3)


def test_the_config_file_is_strict_json(tmp_path):
    make().save(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)
    assert saved["fingerprint"] == make().fingerprint


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 32, 32), torch.zeros(3, 32, 32), torch.zeros(2, 3, 16, 32), torch.zeros(2, 3, 32, 32).byte()],
    ids=["one channel", "no batch", "another size", "bytes"],
)
def test_images_and_latents_that_do_not_fit_are_refused_in_words(images):
    autoencoder = make()
    with pytest.raises(ValueError, match=r"encode takes floating-point images \(B, 3, 32, 32\)"):
        autoencoder.encode(images)
    with pytest.raises(ValueError, match=r"decode takes latents \(B, 5, 3\)"):
        autoencoder.decode(torch.zeros(2, 5, 4))


def saved_before(folder, autoencoder: Autoencoder, sizes: dict) -> None:
    """As it was written before the eps of norms stood in the file."""
    autoencoder.save(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["norm_eps"]
    for part in ("encoder", "decoder"):
        config["sizes"][part] = {k: v for k, v in config["sizes"][part].items() if k != "keep_pooling"} | sizes
    (folder / "config.json").write_text(json.dumps(config))


def test_the_eps_of_its_norms_stands_in_the_file_and_is_read_from_there(tmp_path, images):
    autoencoder = make(ViTConfig("vit_tiny_patch16_224")).eval()
    autoencoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    names = {
        f"{part}.vit.{norm}" for part in ("encoder", "decoder") for norm in ("blocks.*.norm1", "blocks.*.norm2", "norm")
    }
    assert config["norm_eps"] == dict.fromkeys(names, 1e-6)
    config["norm_eps"] = dict.fromkeys(names, 1e-2)
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = Autoencoder.load(tmp_path)
    for part in autoencoder.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = 1e-2
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), autoencoder.encode(images))
    config["norm_eps"].popitem()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="config.json states the eps of other norms"):
        Autoencoder.load(tmp_path)


def test_an_autoencoder_of_before_is_loaded_as_it_was_trained_and_that_is_said(tmp_path, images, capsys):
    autoencoder = make().eval()
    saved_before(tmp_path, autoencoder, {})
    loaded = Autoencoder.load(tmp_path)
    said = capsys.readouterr().err
    assert f"the autoencoder in {tmp_path} states no eps" in said and said.count("\n") == 1
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), autoencoder.encode(images))
    assert loaded.fingerprint == autoencoder.fingerprint


@pytest.mark.parametrize(
    "name, ends", [("test_vit2", "; encoder and decoder: without the norm behind the pooling"), ("test_vit3", "")]
)
def test_one_of_before_with_pooling_goes_on_without_the_norm_behind_it_and_keeps_its_fingerprint(
    tmp_path, images, capsys, name, ends
):
    vit = ViTConfig(name, keep_pooling=True)
    autoencoder = make(vit).eval()
    with torch.no_grad():
        for parameter in autoencoder.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    saved_before(tmp_path, autoencoder, {})
    loaded = Autoencoder.load(tmp_path)
    assert f"what timm gives such transformers{ends}" in capsys.readouterr().err
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), autoencoder.encode(images))
    assert loaded.fingerprint == autoencoder.fingerprint
    loaded.save(tmp_path / "again")
    assert Autoencoder.load(tmp_path / "again").fingerprint == autoencoder.fingerprint


def test_the_trained_norm_of_a_model_that_norms_its_mean_is_the_last_thing_that_tokens_pass(images):
    vit = build_vit(ViTConfig("test_vit2"), 32, 8)
    whole = timm.create_model("test_vit2", img_size=32, patch_size=8, num_classes=0)
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    state = {name.replace("fc_norm", "norm"): value for name, value in whole.state_dict().items()}
    vit.load_state_dict(state)
    encoder = make(ViTConfig("test_vit2")).encoder
    encoder.vit = vit
    x = torch.cat([whole._pos_embed(whole.patch_embed(images)), encoder.latent_tokens.expand(2, -1, -1)], 1)
    expected = encoder.to_latent(whole.fc_norm(whole.blocks(x))[:, -5:])
    torch.testing.assert_close(encoder(images), expected, rtol=1e-4, atol=1e-5)
