"""Features of images: a real timm model and a real autoencoder of this project, both with random weights."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms import functional as TF

from flowprior.data.crops import centre_crop
from flowprior.data.images import ImageConfig, open_images, to_model
from flowprior.data.order import SampleKey
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig
from tokenizer.prior.targets import TargetConfig, load_target
from tokenizer.prior.targets.base import TargetContext
from tokenizer.prior.targets.timm_model import TimmEncoder
from tokenizer.prior.train_flowhead import FlowPriorConfig, check_images_are_used

SIZE, COUNT = 32, 300  # two chunks of images
RANDOM = {"model": "test_vit", "pretrained": False, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        file = root / f"class{i % 3}" / f"{i:04d}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (34, 40, 3), dtype=np.uint8)).save(file)
    return root


def load(run: Path, images: Path | None, seed=0, loaders=0, size=SIZE, source="timm", **options):
    data = ImageConfig("folder", str(images), size) if images else ImageConfig(size=size)
    context = TargetContext(seed, run, World(), data, loaders)
    return load_target(build_config(TargetConfig, {"source": source, source: options}), context)


def slow_features(folder: Path, model, index: int) -> torch.Tensor:
    """One image at a time, by torchvision's own normalisation: ``(positions, width)``."""
    file = sorted(folder.glob("*/*.png"))[index]
    pixels = TF.to_tensor(centre_crop(Image.open(file).convert("RGB"), SIZE))
    pixels = TF.normalize(pixels, model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    with torch.no_grad():
        return model.forward_features(pixels.unsqueeze(0))[0]


def saved_vit(path: Path, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = timm.create_model("test_vit", num_classes=0, img_size=SIZE).eval()
    save_file(model.state_dict(), path) if path.suffix == ".safetensors" else torch.save(model.state_dict(), path)
    return model


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_patch_features_are_those_of_the_model_in_the_weight_file(tmp_path, folder, suffix):
    model = saved_vit(tmp_path / f"weights{suffix}", seed=5)
    options = RANDOM | {"pretrained": True, "weights": str(tmp_path / f"weights{suffix}")}
    target = load(tmp_path, folder, **options)
    table = target.features.view(COUNT, 4, -1)
    assert target.rows_per_sample == 4 and target.features.dtype == torch.float32
    for index in (0, 1, 150, 299):
        expected = slow_features(folder, model, index)[model.num_prefix_tokens :]
        torch.testing.assert_close(table[index], expected, rtol=1e-4, atol=1e-4)


def test_the_class_token_and_the_pooled_feature_are_one_row_per_image(tmp_path, folder):
    model = saved_vit(tmp_path / "weights.pth", seed=5)
    options = RANDOM | {"pretrained": True, "weights": str(tmp_path / "weights.pth"), "rows": 20}
    token = load(tmp_path / "cls", folder, **options, features="cls")
    pooled = load(tmp_path / "pooled", folder, **options, features="pooled")
    assert token.features.shape == pooled.features.shape == (20, 64) and token.rows_per_sample == 1
    images = open_images(ImageConfig("folder", str(folder), SIZE)).batch([SampleKey(i, -1) for i in range(COUNT)])
    with torch.no_grad():
        every = model.forward_features((images["image"] / 255 - 0.5) / 0.5)  # (N, 1 + P, d)
    distance = torch.cdist(token.features, every[:, 0])
    assert distance.amin(1).max() < 0.05 and len(distance.argmin(1).unique()) == 20
    expected = model.forward_head(every, pre_logits=True).detach()
    assert torch.cdist(pooled.features, expected).amin(1).max() < 0.05


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_maps_and_sequences_give_a_row_for_every_position(name):
    model = timm.create_model(name, num_classes=0, **({"img_size": 64} if "vit" in name else {})).eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    config = model.pretrained_cfg
    with torch.no_grad():
        rows, pooled = TimmEncoder(model, "patch")(images), TimmEncoder(model, "pooled")(images)
        outside = model.forward_features(TF.normalize(images / 255, config["mean"], config["std"]))
    outside = outside.permute(0, 2, 3, 1).flatten(1, 2) if outside.dim() == 4 else outside[:, model.num_prefix_tokens :]
    torch.testing.assert_close(rows, outside, rtol=1e-4, atol=1e-4)
    assert pooled.shape[:2] == (2, 1)


def test_drawn_tokens_are_rows_of_the_whole_and_differ_between_images(tmp_path, folder):
    whole = load(tmp_path / "all", folder, **RANDOM).features.view(COUNT, 4, -1)
    some = load(tmp_path / "some", folder, **RANDOM, tokens=2)
    assert some.features.shape == (COUNT * 2, 64) and some.rows_per_sample == 2
    distance = torch.cdist(some.features.view(COUNT, 2, -1), whole)  # (N, 2, 4)
    positions = distance.argmin(-1)
    assert distance.amin(-1).max() < 0.05 and (positions[:, 0] != positions[:, 1]).all()
    assert len({tuple(row) for row in positions.tolist()}) == 6  # every pair of four occurs


def test_a_limit_of_rows_takes_exactly_so_many_of_random_images(tmp_path, folder):
    whole = load(tmp_path / "all", folder, **RANDOM).features.view(COUNT, 4, -1)
    some = load(tmp_path / "some", folder, **RANDOM, rows=42).features
    distance = torch.cdist(some, whole.flatten(0, 1))
    images = distance.argmin(1) // 4
    assert some.shape == (42, 64) and distance.amin(1).max() < 0.05 and len(images.unique()) == 11
    assert images.max() > 100  # of all classes, not the first files


def test_the_table_is_a_function_of_the_seed_and_not_of_the_loaders(tmp_path, folder):
    first, again, other = (
        load(tmp_path / name, folder, seed, loaders, **RANDOM, tokens=1)
        for name, seed, loaders in (("a", 0, 0), ("b", 0, 2), ("c", 1, 0))
    )
    assert torch.equal(first.features, again.features) and not torch.equal(first.features, other.features)


def test_a_table_is_computed_once_and_anew_for_other_options_or_images(tmp_path, folder):
    def stamp(**options):
        load(tmp_path, folder, **(RANDOM | {"rows": 40} | options))
        return (tmp_path / "target_features.npy").stat().st_mtime_ns

    first = stamp()
    assert stamp() == first and stamp(batch=7) == first
    changed = stamp(features="cls")
    assert changed != first and stamp(rows=41, features="cls") != changed


def test_it_lies_memory_mapped_in_half_precision_by_default(tmp_path, folder):
    target = load(tmp_path, folder, **(RANDOM | {"dtype": "float16"}))
    assert target.features.dtype == torch.float16
    assert np.load(tmp_path / "target_features.npy", mmap_mode="r").shape == (COUNT * 4, 64)
    full = load(tmp_path / "full", folder, **RANDOM).features
    torch.testing.assert_close(target.features.float(), full, rtol=1e-3, atol=1e-3)


def test_the_global_generator_is_left_as_it_was(tmp_path, folder):
    before = torch.get_rng_state()
    load(tmp_path, folder, **RANDOM, rows=8)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "vit_nano"}, "timm knows no model 'vit_nano'"),
        (
            {"model": "vit_base_patch14_dinov2.bogus"},
            "no weights 'bogus' of vit_base_patch14_dinov2 .*near it are .*lvd142m",
        ),
        (
            {"model": "vit_base_patch14_dinov2.bogus", "pretrained": True},
            "no weights 'bogus' of vit_base_patch14_dinov2 .*near it are .*lvd142m",
        ),
        ({"model": "test_resnet", "features": "cls"}, "no class token"),
        ({"pretrained": True, "weights": "nowhere.pth"}, "no weight file at 'nowhere.pth'"),
        ({"model": "test_vit.nonsense"}, "timm knows no weights 'nonsense' of test_vit"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence_and_nothing_is_written(tmp_path, folder, options, message):
    size = options.pop("size", SIZE)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "run", folder, size=size, **(RANDOM | options))
    assert not (tmp_path / "run").exists()


def test_images_that_patches_do_not_divide_are_resampled_to_the_nearest_multiple_and_that_is_said(
    tmp_path, folder, capsys
):
    target = load(tmp_path, folder, size=40, **RANDOM, rows=18)
    assert "images of 40 px are resampled to 48 px for 'test_vit', a multiple of its patches" in capsys.readouterr().err
    assert target.rows_per_sample == 9
    assert "size 40 at 48" in (tmp_path / "target_features.json").read_text()
    load(tmp_path / "whole", folder, size=32, **RANDOM, rows=18)
    assert "note" not in capsys.readouterr().err


def test_pixels_that_a_network_leaves_unseen_are_counted_and_said(tmp_path, folder, capsys):
    load(tmp_path, folder, size=38, **(RANDOM | {"model": "test_convnext", "rows": 9}))
    assert "'test_convnext' does not see 2 rows and 2 columns of images of 38 px" in capsys.readouterr().err


def test_patch_features_of_a_model_that_norms_its_mean_pass_its_trained_norm(tmp_path):
    model = timm.create_model("test_vit2", num_classes=0, img_size=SIZE).eval()
    with torch.no_grad():
        model.fc_norm.weight.add_(torch.rand(64))
        model.fc_norm.bias.add_(torch.rand(64))
        images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
        mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1) * 255 for name in ("mean", "std"))
        plain = model.forward_features((images - mean) / std)
        prefix = model.num_prefix_tokens
        torch.testing.assert_close(TimmEncoder(model, "patch")(images), model.fc_norm(plain)[:, prefix:])
        expected = model.fc_norm(plain[:, prefix:].mean(1))
        torch.testing.assert_close(TimmEncoder(model, "pooled")(images)[:, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["noise", "another model", "truncated"])
def test_a_weight_file_that_does_not_fit_is_named(tmp_path, folder, kind):
    file = tmp_path / "weights.safetensors"
    saved_vit(file, 0)
    if kind == "another model":
        save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), file)
    else:
        file.write_bytes(b"noise" * 100 if kind == "noise" else file.read_bytes()[:-100])
    with pytest.raises(UserError, match=str(file)):
        load(tmp_path / "run", folder, **(RANDOM | {"pretrained": True, "weights": str(file)}))


def test_an_unreadable_image_is_named_and_once_it_is_mended_the_same_call_goes_on(tmp_path, folder):
    bad = sorted(folder.glob("*/*.png"))[280]
    whole = bad.read_bytes()
    bad.write_bytes(b"no image" + bytes(len(whole) - 8))
    try:
        with pytest.raises(UserError, match=bad.name):
            load(tmp_path, folder, **RANDOM)
        assert (tmp_path / "target_features.done").read_bytes() == b"\x01\x00"  # the first chunk stays
    finally:
        bad.write_bytes(whole)
    assert torch.equal(load(tmp_path, folder, **RANDOM).features, load(tmp_path / "other", folder, **RANDOM).features)


@pytest.fixture
def autoencoder(tmp_path) -> Path:
    vit = ViTConfig(width=24, depth=1, heads=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Autoencoder(AutoencoderConfig(16, 8, tokens=3, channels=5, gaussian=True, encoder=vit, decoder=vit))
    model.save(tmp_path / "autoencoder")
    return tmp_path / "autoencoder"


def test_the_low_level_target_is_the_latents_of_ones_own_autoencoder_at_its_own_size(tmp_path, folder, autoencoder):
    target = load(tmp_path, folder, source="autoencoder", path=str(autoencoder), dtype="float32")
    images = open_images(ImageConfig("folder", str(folder), 16)).batch([SampleKey(i, -1) for i in (0, 77, 299)])[
        "image"
    ]
    with torch.no_grad():
        expected = Autoencoder.load(autoencoder).encode(to_model(images))  # (3, T, C)
    torch.testing.assert_close(target.features.view(COUNT, 3, 5)[[0, 77, 299]], expected, rtol=1e-4, atol=1e-5)
    assert target.rows_per_sample == 3


def test_another_autoencoder_in_the_same_place_is_another_target(tmp_path, folder, autoencoder):
    first = load(tmp_path, folder, source="autoencoder", path=str(autoencoder)).fingerprint()
    model = Autoencoder.load(autoencoder)
    model.encoder.to_latent.bias.data.add_(1)
    model.save(autoencoder)
    assert load(tmp_path, folder, source="autoencoder", path=str(autoencoder)).fingerprint() != first


@pytest.mark.parametrize("path, message", [("", "target.autoencoder.path="), ("nowhere", "nowhere/config.json")])
def test_without_an_autoencoder_one_line_says_what_to_do(tmp_path, folder, path, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, folder, source="autoencoder", path=path)


LOW_LEVEL = {"steps": 2, "tokens": 3, "channels": 4, "width": 24, "depth": 1}


def test_the_digits_low_level_target_is_a_function_of_the_seed_and_its_autoencoder_stays(tmp_path):
    first, other = (
        load(tmp_path / name, None, seed, source="digits_lowlevel", **LOW_LEVEL) for name, seed in (("a", 0), ("b", 1))
    )
    assert first.features.shape == (1797 * 3, 4) and first.rows_per_sample == 3
    trained = Autoencoder.load(tmp_path / "a" / "target_autoencoder" / "ae" / "autoencoder")
    assert trained.config.gaussian and trained.about["regularisers"][0]["name"] == "kl"
    digits = open_images(ImageConfig()).batch([SampleKey(5, -1)])["image"]
    with torch.no_grad():
        torch.testing.assert_close(
            first.features.view(-1, 3, 4)[5:6], trained.encode(to_model(digits)), rtol=1e-4, atol=1e-5
        )
    assert first.fingerprint() != other.fingerprint()
    stamp = (tmp_path / "a" / "target_features.npy").stat().st_mtime_ns
    assert load(tmp_path / "a", None, 0, source="digits_lowlevel", **LOW_LEVEL).fingerprint() == first.fingerprint()
    assert (tmp_path / "a" / "target_features.npy").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "target, code",
    [
        ({"source": "timm"}, "reads them"),
        ({"source": "autoencoder"}, "reads them"),
        ({"source": "codebook", "codebook": {"of": "timm", "clusters": 4}}, "reads them"),
        ({"source": "file"}, "said"),
        ({"source": "word_vectors"}, "said"),
        ({}, "refused"),
        ({"source": "codebook", "codebook": {"of": "digits_semantic", "clusters": 4}}, "refused"),
    ],
)
def test_of_images_that_the_target_does_not_read_a_line_is_said_and_those_of_other_images_are_refused(
    target, code, capsys
):
    config = build_config(FlowPriorConfig, {"target": target, "data": {"source": "files", "path": "/data/images"}})
    if code == "refused":
        with pytest.raises(
            UserError, match="embedded digits, and DATA or data.path names /data/images: leave that out"
        ):
            check_images_are_used(config)
    else:
        check_images_are_used(config)
    assert ("/data/images is not read" in capsys.readouterr().err) == (code == "said")
    check_images_are_used(build_config(FlowPriorConfig, {"target": target}))
    assert not capsys.readouterr().err
