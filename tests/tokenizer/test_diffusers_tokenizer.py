"""diffusers' autoencoders where ours are taken: the low-level target and stage 3."""

import pytest
import torch

from flowprior.data.images import ImageConfig, open_images, to_model
from flowprior.data.latent_writer import CacheConfig
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from generation.autoencoder import decode_to_uint8, load_autoencoder
from generation.cache_latents import make_encode
from mar.config import MARStageConfig
from small_diffusers import save_small_diffusers
from tokenizer.diffusers_kl import DiffusersAutoencoder
from tokenizer.opening import load_tokenizer
from tokenizer.prior.targets.autoencoder import AutoencoderTarget
from tokenizer.prior.targets.base import TargetContext


@pytest.fixture
def theirs(tmp_path):
    return save_small_diffusers(tmp_path / "vae")


@pytest.fixture
def images():
    return to_model(open_images(ImageConfig(size=16)).images[:3])


def stage(tmp_path, size=16):
    return build_config(MARStageConfig, {"autoencoder": f"{tmp_path}/vae", "data": {"size": size}})


@torch.no_grad()
def test_stage_3_caches_the_means_and_log_variances_of_the_posterior_and_decodes_tokens(theirs, images, tmp_path):
    ours = load_autoencoder(stage(tmp_path), torch.device("cpu"))
    distribution = theirs.encode(images).latent_dist
    mean, logvar = (part.flatten(2).transpose(1, 2) for part in (distribution.mean, distribution.logvar))
    assert (ours.config.image_size, ours.config.tokens, ours.config.channels) == (16, 16, 3)
    torch.testing.assert_close(make_encode(ours, CacheConfig(), torch.device("cpu"))(images), mean)
    moments = make_encode(ours, CacheConfig(posterior="moments"), torch.device("cpu"))(images)
    torch.testing.assert_close(moments, torch.cat([mean, logvar], -1))
    decoded = theirs.decode(distribution.mean).sample
    fresh = load_autoencoder(stage(tmp_path), torch.device("cpu"))  # decodes before it has encoded anything
    torch.testing.assert_close(fresh.decode(mean), decoded)
    assert decode_to_uint8(fresh, mean).shape == (3, 3, 16, 16)


def test_its_fingerprint_is_of_its_weights(theirs, tmp_path):
    save_small_diffusers(tmp_path / "other", seed=1)
    prints = [load_tokenizer(tmp_path / name, 16).fingerprint for name in ("vae", "vae", "other")]
    assert prints[0] == prints[1] != prints[2]


def test_images_of_no_whole_map_are_refused(theirs, tmp_path):
    with pytest.raises(UserError, match="map of 1 / 4 of the image: data.size=18"):
        load_autoencoder(stage(tmp_path, 18), torch.device("cpu"))


@torch.no_grad()
def test_the_low_level_target_takes_its_latents_at_the_size_of_the_data(theirs, tmp_path):
    context = TargetContext(0, tmp_path / "run", World(), ImageConfig(size=16, subset="val"))
    target = AutoencoderTarget(path=str(tmp_path / "vae")).load(context)
    pictures = open_images(context.data).images
    means = theirs.encode(to_model(pictures)).latent_dist.mean.flatten(2).transpose(1, 2)  # (N, T, C)
    found = target.features[:].float().reshape(-1, 3)
    distances = torch.cdist(found[:50], means.reshape(-1, 3)).amin(1)
    assert distances.max() < 2e-3  # each row is a token of some image; kept in half precision
    assert found.shape[0] == len(pictures) * 16  # every token of every image
    of_larger = TargetContext(0, tmp_path / "larger", World(), ImageConfig(size=32, subset="val"))
    assert AutoencoderTarget(path=str(tmp_path / "vae")).load(of_larger).name != target.name


def test_a_folder_without_weights_is_refused(theirs, tmp_path, capfd):
    for file in (tmp_path / "vae").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(UserError, match="cannot be read by diffusers"):
        DiffusersAutoencoder.load(str(tmp_path / "vae"))
    assert capfd.readouterr().err == ""  # diffusers says it as well, unless it is asked not to
    context = TargetContext(0, tmp_path / "run", World(), ImageConfig(size=16))
    with pytest.raises(UserError, match="no .safetensors file of weights"):
        AutoencoderTarget(path=str(tmp_path / "vae")).load(context)
