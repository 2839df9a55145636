import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from demo.actions import encode, generate, prior_picture, read_as_cropped, rebuild, walk
from demo.trained_run import NOISE, open_run
from demo_run import SIDE, write_run
from flowprior.data.images import ImageConfig, open_images
from flowprior.data.order import SampleKey
from flowprior.errors import UserError
from generation.autoencoder import decode_to_uint8
from generation.generate import main as generate_command
from mar.config import MARStageConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run(folder):
    return open_run(folder)


@pytest.fixture(scope="module")
def pictures(run):
    return run.examples[:2]


def test_the_page_draws_what_the_command_draws(run, folder, tmp_path, monkeypatch):
    words = ["--classes", "3", "1", "--n", "6", "--cfg", "1.5", "--out", str(tmp_path / "some.npz")]
    options = [f"run_dir={folder}", "data.size=16", "sample.seed=7", "model.mar.sampler={ar_steps: 2, head_steps: 3}"]
    monkeypatch.setattr("sys.argv", ["generate", *words, *options])
    generate_command(MARStageConfig)
    expected = np.load(tmp_path / "some.npz")["arr_0"]
    found = generate(run.generators["mar"], [3, 1], 3, 1.5, 7).images
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), expected)


def test_another_sampler_draws_other_images_and_one_that_lacks_something_is_refused(run):
    mar = run.generators["mar"]
    kept, before = mar.sampler, generate(mar, [0], 2, 1, 0).images
    mar.sample_by(type(kept)(ar_steps=4, head_steps=1))
    assert not torch.equal(generate(mar, [0], 2, 1, 0).images, before)
    with pytest.raises(UserError, match="there is no flow map.*run `python -m mar distil_head run_dir="):
        mar.sample_by(type(kept)(ar_steps=2, head="map", head_evaluations=1))
    mar.sample_by(kept)
    assert torch.equal(generate(mar, [0], 2, 1, 0).images, before)


@pytest.mark.parametrize("per_class, cfg, message", [(0, 1, "0 images"), (60, 1, "300 images"), (1, -1, "guidance is")])
def test_too_many_images_none_and_a_negative_guidance_are_refused(run, per_class, cfg, message):
    with pytest.raises(UserError, match=message):
        generate(run.generators["mar"], [], per_class, cfg, 0)


def test_an_image_is_rebuilt_as_the_autoencoder_does_and_noise_is_a_share_of_the_deviation(run, pictures):
    image = pictures[:1]
    plain = rebuild(run, image, 0, 0)
    assert torch.equal(plain.images[0], image[0]) and torch.equal(plain.images[1], plain.images[2])
    assert torch.equal(plain.images[1:2], decode_to_uint8(run.autoencoder, encode(run, image)))
    assert plain.psnr[0] == pytest.approx(plain.psnr[1], abs=1e-6)
    assert not torch.equal(rebuild(run, image, 0.5, 0).images[2], plain.images[1])
    torch.testing.assert_close(run.deviation, encode(run, all_images(run)).std(0), rtol=1e-4, atol=1e-6)


def all_images(run):
    images = open_images(ImageConfig(size=SIDE, subset="val"))
    return images.batch([SampleKey(i, -1) for i in range(len(images))])["image"]


def test_a_walk_begins_and_ends_at_the_two_reconstructions_and_passes_the_mean_latent(run, pictures):
    line = walk(run, pictures, 5)
    latents = encode(run, pictures)
    assert torch.equal(line[[0, 4]], pictures)
    assert torch.equal(line[[5, 9]], decode_to_uint8(run.autoencoder, latents))
    assert torch.equal(line[7:8], decode_to_uint8(run.autoencoder, latents.mean(0, keepdim=True)))


def test_any_image_file_is_cut_to_the_autoencoders_size(run, tmp_path):
    Image.new("RGBA", (90, 40), (255, 0, 0, 0)).save(tmp_path / "wide.png")
    assert torch.equal(
        read_as_cropped(run, tmp_path / "wide.png"), torch.full((1, 3, SIDE, SIDE), 255, dtype=torch.uint8)
    )
    (tmp_path / "text.png").write_text("no image")
    for file, message in ((None, "choose an image"), (tmp_path / "text.png", "text.png")):
        with pytest.raises(UserError, match=message):
            read_as_cropped(run, file)


def test_the_prior_is_drawn_into_a_picture_that_its_seed_decides(run, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert prior_picture(run, 50, 2, seed, tmp_path / name) > 0
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a.startswith(b"\x89PNG") and a == b != c


def test_what_a_run_lacks_is_said_and_left_out(folder, tmp_path, capsys):
    shutil.copytree(folder / "ae", tmp_path / "ae")
    file = tmp_path / "ae" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["data"] |= {"source": "files", "path": str(tmp_path / "gone"), "subset": "all"}
    file.write_text(yaml.safe_dump(config))
    run = open_run(tmp_path)
    assert run.examples is None and run.prior is None and not run.generators
    assert len(run.left_out) == 5 and capsys.readouterr().err.count("note: ") >= 5
    image = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)
    assert rebuild(run, image, 0, 0).images.shape == (3, 3, SIDE, SIDE)
    with pytest.raises(UserError, match="deviation that noise is a share of is not known"):
        rebuild(run, image, 0.1, 0)
    file.unlink()  # as an imported autoencoder's, which was not trained here
    assert "which images" in open_run(tmp_path).left_out[NOISE]
    shutil.rmtree(tmp_path / "ae" / "autoencoder")
    with pytest.raises(UserError, match="there is no autoencoder"):
        open_run(tmp_path)
    with pytest.raises(UserError, match="no run at"):
        open_run(tmp_path / "nothing")


def test_a_run_on_an_autoencoder_from_elsewhere_draws_and_rebuilds_with_it(run, folder, tmp_path):
    shutil.copytree(folder / "mar", tmp_path / "run" / "mar")
    shutil.copytree(folder / "ae" / "autoencoder", tmp_path / "elsewhere")
    file = tmp_path / "run" / "mar" / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"autoencoder": str(tmp_path / "elsewhere")}))
    other = open_run(tmp_path / "run")
    images = generate(run.generators["mar"], [1], 2, 1, 0).images
    assert torch.equal(generate(other.generators["mar"], [1], 2, 1, 0).images, images)
    assert rebuild(other, other.examples[:1], 0.5, 0).images.shape == (3, 3, SIDE, SIDE)
