"""Everything that a person may name as a tokenizer, and the one line for what is none."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flowprior.data.images import ImageConfig, open_images, to_model
from flowprior.data.latent_writer import CacheConfig, write_latent_cache
from flowprior.distributed import World
from flowprior.errors import UserError
from hub import hub_client, serving
from latent_report.opening import ImageOptions, open_tokenizer, read_labels
from latent_report.opening.base import spread
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.vit import ViTConfig

DIGITS = ImageOptions(ImageConfig(size=16), count=24)
LABELS = np.arange(30) % 3


def small_autoencoder() -> Autoencoder:
    vit = ViTConfig(width=12, depth=1, heads=3)
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(16, 8, 4, 6, encoder=vit, decoder=vit)).eval()


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("within", ["", "autoencoder", "ae/autoencoder"])
def test_an_autoencoder_is_found_in_its_folder_in_its_stages_and_in_its_runs(tmp_path, within):
    model = small_autoencoder()
    model.save(tmp_path / within)
    opened = open_tokenizer(str(tmp_path), DIGITS)
    source = open_images(ImageConfig(size=16))
    chosen = spread(len(source), 24)
    assert opened.images.shape == (24, 3, 16, 16) and opened.places == (4,)
    assert torch.equal(opened.images, source.images[chosen]) and torch.equal(opened.labels, source.labels[chosen])
    torch.testing.assert_close(opened.latents, model.encode(to_model(opened.images)).detach())
    torch.testing.assert_close(opened.decode(opened.latents), model.decode(opened.latents))
    assert not opened.latents.requires_grad


@pytest.mark.parametrize("within", ["", "vae"])
def test_a_real_autoencoder_of_diffusers_gives_the_posteriors_means_as_tokens_and_decodes_them(tmp_path, within):
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        norm_num_groups=4,
        sample_size=16,
    ).eval()
    model.save_pretrained(tmp_path / within)
    opened = open_tokenizer(str(tmp_path), DIGITS)
    assert opened.places == (8, 8) and opened.latents.shape == (24, 64, 3)
    with torch.no_grad():
        maps = model.encode(to_model(opened.images)).latent_dist.mean
        torch.testing.assert_close(opened.latents[:, 9], maps[:, :, 1, 1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(opened.decode(opened.latents), model.decode(maps).sample, rtol=1e-4, atol=1e-4)
    (tmp_path / within / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read by diffusers"):
        open_tokenizer(str(tmp_path), DIGITS)


def test_latents_in_files_are_tokens_maps_or_one_token_each_with_the_labels_beside_them(tmp_path):
    tokens, maps = latents(30, 5, 3), latents(30, 3, 2, 4)
    np.savez(tmp_path / "a.npz", latents=tokens.numpy(), labels=LABELS, more=np.zeros(3, np.float32))
    save_file({"z": maps, "labels": torch.from_numpy(LABELS)}, tmp_path / "b.safetensors")
    np.save(tmp_path / "c.npy", tokens[:, 0].numpy())
    np.save(tmp_path / "d.npy", maps.numpy().astype(">f4"))  # of a machine with the other byte order
    whole = ImageOptions(ImageConfig())
    files = ("a.npz", "b.safetensors", "c.npy", "d.npy")
    one, two, three, four = (open_tokenizer(str(tmp_path / name), whole) for name in files)
    assert torch.equal(one.latents, tokens) and one.labels.tolist() == LABELS.tolist() and one.decode is None
    assert two.places == (2, 4) and torch.equal(two.latents[:, 5], maps[:, :, 1, 1])
    assert three.latents.shape == (30, 1, 3) and three.labels is None
    assert four.places == (2, 4) and torch.equal(four.latents, two.latents)
    some = open_tokenizer(str(tmp_path / "a.npz"), ImageOptions(ImageConfig(), count=20))
    assert torch.equal(some.latents, tokens[spread(30, 20)]) and some.labels.tolist() == LABELS[spread(30, 20)].tolist()


def test_labels_that_a_person_names_take_the_place_of_those_that_come_along(tmp_path):
    model, source = small_autoencoder(), open_images(ImageConfig(size=16))
    model.save(tmp_path / "model")
    write_latent_cache(tmp_path / "cache", source, model.encode, CacheConfig(dtype="float32"), {}, World())
    np.savez(tmp_path / "a.npz", latents=latents(len(source), 4, 6).numpy(), labels=source.labels.numpy())
    named = torch.arange(len(source)) % 7
    for tokenizer in ("model", "cache", "a.npz"):
        opened = open_tokenizer(str(tmp_path / tokenizer), ImageOptions(ImageConfig(size=16), 24, named))
        assert torch.equal(opened.labels, named[spread(len(source), 24)])
        with pytest.raises(UserError, match=rf"has {len(source)} images and there are 5 labels: give one for each"):
            open_tokenizer(str(tmp_path / tokenizer), ImageOptions(ImageConfig(size=16), 24, named[:5]))


def test_a_name_on_the_hub_is_found_in_the_folder_that_has_it_and_again_without_a_network(tmp_path):
    model = small_autoencoder()
    for name, within in (("alone", ""), ("run", "ae/autoencoder"), ("stage", "autoencoder"), ("pipeline", "vae")):
        model.save(tmp_path / "hub" / "user" / name / within)
    write(tmp_path / "hub" / "user" / "stage", config=json.dumps({"model_type": "sit"}))  # a config of something else
    home = str(tmp_path / "home")
    with serving(tmp_path / "hub") as hub, hub_client(HF_HOME=home, HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}"):
        found = [open_tokenizer(f"user/{name}", DIGITS) for name in ("alone", "run", "stage", "pipeline")]
        for name, said in (("empty", "neither itself nor in ae/autoencoder, autoencoder, vae"), ("other", "is clip")):
            (tmp_path / "hub" / "user" / name).mkdir()
            if name == "other":
                write(tmp_path / "hub" / "user" / name, config=json.dumps({"model_type": "clip"}))
            with pytest.raises(UserError, match=said):
                open_tokenizer(f"user/{name}", DIGITS)
        with pytest.raises(UserError, match="of no/body is not on this machine"):
            open_tokenizer("no/body", DIGITS)
    with hub_client(HF_HOME=home, HF_HUB_OFFLINE="1"):
        found += [open_tokenizer(f"user/{name}", DIGITS) for name in ("alone", "run", "stage", "pipeline")]
    assert all(torch.equal(opened.latents, found[0].latents) for opened in found)


def test_a_latent_cache_gives_the_first_view_of_every_image_with_its_label(tmp_path):
    model = small_autoencoder()
    images = open_images(ImageConfig(size=16))
    write_latent_cache(tmp_path, images, model.encode, CacheConfig(flips=True, dtype="float32"), {}, World())
    cached, direct = open_tokenizer(str(tmp_path), DIGITS), None
    model.save(tmp_path / "model")
    direct = open_tokenizer(str(tmp_path / "model"), DIGITS)
    torch.testing.assert_close(cached.latents, direct.latents, rtol=1e-4, atol=1e-5)
    assert torch.equal(cached.labels, direct.labels)


def test_a_latent_cache_of_moments_gives_the_mean_and_one_of_draws_says_so(tmp_path, capsys):
    images, drawn = open_images(ImageConfig(size=16)), {"posterior": "sample"}

    def moments(batch):
        mean = batch.flatten(1)[:, :8].unflatten(1, (4, 2))
        return torch.cat([mean, torch.zeros_like(mean)], -1)

    for name, origin in (("moments", {}), ("sample", drawn)):
        config = CacheConfig(posterior=name, dtype="float32")
        write_latent_cache(tmp_path / name, images, moments, config, origin, World())
    mean = moments(to_model(images.images[spread(len(images), 24)]))[..., :2]
    assert torch.equal(open_tokenizer(str(tmp_path / "moments"), DIGITS).latents, mean)
    assert "draws of a posterior" not in capsys.readouterr().err
    assert not torch.allclose(open_tokenizer(str(tmp_path / "sample"), DIGITS).latents, mean, atol=0.1)
    assert "sample holds draws of a posterior: their noise is in all figures" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arrays, said",
    [
        ({"latents": latents(3, 5, 2)}, "has 3 images, and the report takes 20"),
        ({"latents": latents(30, 2, 2, 2, 2)}, "have shape (30, 2, 2, 2, 2)"),
        ({"latents": latents(30)}, "have shape (30,)"),
        (
            {"one": latents(30, 2), "two": latents(30, 2)},
            "several arrays of floating point and none is called 'latents'",
        ),
        ({"latents": latents(30, 2).long()}, "no array of floating point (it has: latents of int64)"),
        (
            {"latents": latents(30, 5, 2), "labels": torch.zeros(29, dtype=torch.int64)},
            "30 images and there are 29 labels",
        ),
        ({"latents": latents(30, 5, 2), "labels": latents(30)}, "one whole number for each"),
        ({"latent": latents(30, 2), "z": latents(30, 2)}, "holds latent and z: call the one that is meant 'latents'"),
        ({"latents": torch.full((30, 2, 2), torch.nan)}, "not finite in 30 images"),
        ({"latents": torch.ones(30, 2, 2)}, "the same everywhere"),
        ({"latents": latents(0, 2, 2)}, "are empty"),
    ],
)
def test_latents_that_cannot_be_measured_are_refused_in_one_line(tmp_path, arrays, said):
    save_file(arrays, tmp_path / "a.safetensors")
    with pytest.raises(UserError) as refused:
        open_tokenizer(str(tmp_path / "a.safetensors"), ImageOptions(ImageConfig()))
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name, said", [("latents", ""), ("z", "'z' is taken for the latents"), ("x", "'x' is taken")])
def test_an_array_by_another_name_is_taken_with_a_word(tmp_path, capfd, name, said):
    np.savez(tmp_path / "a.npz", **{name: latents(30, 5, 2).numpy(), "y" if said else "labels": LABELS})
    found = open_tokenizer(str(tmp_path / "a.npz"), DIGITS)
    assert found.labels.tolist() == LABELS[np.linspace(0, 29, 24).round().astype(int)].tolist()
    err = capfd.readouterr().err
    assert said in err and ("is taken for the labels" in err) == bool(said)


def write_cut(file: Path) -> None:
    np.save(file, latents(30, 5, 2).numpy())
    file.write_bytes(file.read_bytes()[:-8])


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)


@pytest.mark.parametrize(
    "prepare, said",
    [
        (lambda folder: None, "it has no config.json"),
        (lambda folder: write(folder, config="{"), "cannot be read"),
        (lambda folder: write(folder, config=json.dumps({"_class_name": "UNet2DModel"})), "is UNet2DModel"),
        (lambda folder: write(folder, config=json.dumps({"model_type": "clip"})), "is clip"),
        (lambda folder: write(folder, config=json.dumps({"sizes": {}, "format": 9})), "not an autoencoder of format"),
        (lambda folder: write(folder, manifest="{}"), "of another version"),
        (lambda folder: (folder / "a.npz").write_bytes(b"no zip"), "cannot be read"),
        (lambda folder: write_cut(folder / "a.npy"), "the file of latents"),
    ],
)
def test_a_folder_or_file_that_is_no_tokenizer_is_refused_in_one_line(tmp_path, prepare, said):
    prepare(tmp_path)
    named = next(tmp_path.glob("a.np*"), tmp_path)
    with pytest.raises(UserError) as refused:
        open_tokenizer(str(named), DIGITS)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("named", ["no/such/folder", "./nothing", "nothing.npz", "plain"])
def test_what_is_not_there_is_said_without_asking_the_hub(named):
    with pytest.raises(UserError, match="there is no"):
        open_tokenizer(named, DIGITS)


def test_three_images_are_too_few_before_anything_is_encoded(tmp_path):
    small_autoencoder().save(tmp_path)
    with pytest.raises(UserError, match="has 3 images"):
        open_tokenizer(str(tmp_path), ImageOptions(ImageConfig(size=16), count=3))


def test_labels_are_whole_numbers_in_a_file_of_numpy(tmp_path):
    np.save(tmp_path / "labels.npy", LABELS.astype(np.int32))
    assert read_labels(tmp_path / "labels.npy").tolist() == LABELS.tolist()
    np.save(tmp_path / "floats.npy", latents(30).numpy())
    (tmp_path / "torn.npy").write_bytes(b"\x93NUMPY")
    for name, said in (("floats", "no whole numbers"), ("torn", "cannot be read"), ("none", "no file of labels")):
        with pytest.raises(UserError, match=said):
            read_labels(tmp_path / f"{name}.npy")


def test_a_map_of_one_row_varies_along_its_other_side_alone(tmp_path):
    save_file({"latents": latents(30, 4, 1, 6)}, tmp_path / "z.safetensors")
    assert open_tokenizer(str(tmp_path / "z.safetensors"), DIGITS).places == (6,)
