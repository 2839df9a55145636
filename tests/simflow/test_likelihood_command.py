import math

import pytest
import torch

from flowprior.data.images import ImageConfig, open_images, to_model
from flowprior.data.latent_scale import LatentNormaliser
from flowprior.data.loader import indexed_batches
from generation.generator import GeneratorObjective
from simflow.likelihood import bits_per_dimension, latents_of
from simflow.model import TarFlowConfig
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.vit import ViTConfig


def test_bits_of_gaussian_latents_are_their_entropy_in_their_own_units():
    """Latents N(m, s^2) per channel, normalised to unit variance, under a fresh flow, which is a standard normal."""
    normaliser, std = LatentNormaliser(2), torch.tensor([3.0, 0.2])
    normaliser.mean.copy_(torch.tensor([5.0, -1.0]))
    normaliser.scale.copy_(1 / std)
    bundle = GeneratorObjective(TarFlowConfig(width=8, depths=(1,), heads=2).build(4, 2, 3), normaliser).eval()
    draws = torch.randn(50_000, 4, 2, generator=torch.Generator().manual_seed(0))
    bits = bits_per_dimension(bundle, draws * std + normaliser.mean, torch.zeros(50_000, dtype=torch.long))
    entropy = (0.5 * math.log2(2 * math.pi * math.e) + std.log2()).mean()
    torch.testing.assert_close(bits.mean(), entropy, rtol=0, atol=0.01)


def test_the_noise_of_training_is_on_the_latents_that_are_measured():
    config = TarFlowConfig(width=8, depths=(1,), heads=2, noise_std=2.0)
    bundle = GeneratorObjective(config.build(4, 2, 3), LatentNormaliser(2)).eval()
    zeros, labels = torch.zeros(20_000, 4, 2), torch.zeros(20_000, dtype=torch.long)
    bits = bits_per_dimension(bundle, zeros, labels)
    expected = (0.5 * math.log(2 * math.pi) + 0.5 * 2.0**2) / math.log(2)
    torch.testing.assert_close(bits.mean(), torch.tensor(expected), rtol=0.02, atol=0)
    assert torch.equal(bits, bits_per_dimension(bundle, zeros, labels))


@pytest.mark.parametrize("posterior", [{"posterior_std": 0.5}, {"gaussian": True}, {}])
def test_latents_that_are_measured_are_the_mean_or_the_posteriors_draws_as_the_flow_was_trained(posterior):
    torch.manual_seed(0)
    vit = ViTConfig(width=12, depth=1, heads=3)
    autoencoder = Autoencoder(
        AutoencoderConfig(patch_size=16, tokens=3, channels=4, encoder=vit, decoder=vit, **posterior)
    )
    images = open_images(ImageConfig(source="digits", size=32))
    mean, labels = next(latents_of(images, autoencoder, drawn=False))
    drawn, _ = next(latents_of(images, autoencoder, drawn=True))
    again, _ = next(latents_of(images, autoencoder, drawn=True))
    batch = next(indexed_batches(images, [range(len(mean))]))
    with torch.no_grad():
        code = autoencoder.posterior(to_model(batch["image"]))
    assert torch.equal(mean, code.mean) and torch.equal(labels, batch["label"]) and torch.equal(drawn, again)
    std = torch.tensor(posterior.get("posterior_std", 0.0)) if code.logvar is None else (0.5 * code.logvar).exp()
    assert ((drawn - mean).std() == 0) == (not posterior)
    torch.testing.assert_close((drawn - mean).square().mean(), std.square().mean(), rtol=0.1, atol=0)
