"""soft_pq, reals and vavae against slow references, and every pair of regularisers in one step."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as functional

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from flowprior.run.files import write_tensors
from flowprior.training.randomness import StepRandom
from networks import random_prior, values
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, Encoded
from tokenizer.features import FeatureConfig, build_features
from tokenizer.features.base import FeatureContext
from tokenizer.features.timm import TimmFeatures
from tokenizer.latent_maps.soft_codebook import SoftCodebook, SoftCodebookConfig
from tokenizer.objective import AutoencoderObjective, LossConfig
from tokenizer.regularisers import REGULARISERS, RegulariserConfig
from tokenizer.regularisers.assignment_entropy import entropy_loss, over_processes
from tokenizer.regularisers.base import RegulariserContext
from tokenizer.regularisers.feature_head import FeatureHead
from tokenizer.regularisers.reals import RealsConfig
from tokenizer.regularisers.soft_pq import SoftPQConfig
from tokenizer.regularisers.softvq import SoftVQConfig
from tokenizer.regularisers.vavae import VAVAEConfig, marginal_cosine_loss, marginal_distance_loss
from tokenizer.vit import ViTConfig

TOKENS, CHANNELS = 4, 4
VIT = ViTConfig(width=12, depth=1, heads=3)
MODEL = AutoencoderConfig(32, 8, TOKENS, CHANNELS, encoder=VIT, decoder=VIT)


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    return TimmFeatures("vit_tiny_patch16_224", pretrained=False, size=32).build(32)


def context(features=None, prior=None) -> RegulariserContext:
    return RegulariserContext(prior, MODEL, 10, 0, World(), features)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def test_soft_assignment_is_the_softmax_of_cosines_over_the_temperature(generator):
    torch.manual_seed(0)
    book = SoftCodebook(SoftCodebookConfig(2, 5, 0.3), 3, CHANNELS)
    latents = torch.randn(2, 3, CHANNELS, generator=generator)
    soft, metrics = book(latents)
    entropies, mean = [], torch.zeros(2, 5)
    for image, token, k in itertools.product(range(2), range(3), range(2)):
        part, words = latents[image, token, 2 * k : 2 * k + 2].tolist(), book.codewords[k].tolist()
        weights = [math.exp(cosine(part, word) / 0.3) for word in words]
        shares = [w / sum(weights) for w in weights]
        for c in range(2):
            unit = [word[c] / math.hypot(*word) for word in words]
            expected = sum(share * u for share, u in zip(shares, unit))
            assert soft[image, token, 2 * k + c].item() == pytest.approx(expected, abs=1e-5)
        entropies.append(-sum(share * math.log(share) for share in shares))
        mean[k] += torch.tensor(shares) / 6
    assert metrics["assignment_entropy"].item() == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    torch.testing.assert_close(metrics["assignment_mean"], mean)


def test_a_cold_soft_codebook_is_a_hard_one(generator):
    torch.manual_seed(0)
    book = SoftCodebook(SoftCodebookConfig(1, 7, 1e-4), 9, CHANNELS)
    soft, metrics = book(torch.randn(1, 9, CHANNELS, generator=generator))
    words = torch.nn.functional.normalize(book.codewords[0], dim=-1)
    assert torch.cdist(soft[0], words).min(1).values.max() < 1e-3 and metrics["assignment_entropy"] < 0.05


def test_the_entropy_part_is_smallest_when_every_token_is_sure_and_all_words_are_used():
    sure, used = torch.tensor(0.0), torch.full((2, 8), 1 / 8)
    assert entropy_loss(sure, used).item() == pytest.approx(-math.log(8))
    assert entropy_loss(sure, torch.eye(8)[:2]).item() == 0  # one word for all
    assert entropy_loss(torch.tensor(math.log(8)), used).item() == pytest.approx(0, abs=1e-6)  # nobody is sure


def test_a_mean_over_processes_has_everybodys_value_and_ones_own_gradient():
    class Two(World):
        def all_reduce(self, tensor):
            return tensor.add_(torch.tensor([5.0, 1.0]))  # what the other process has

    local = torch.tensor([1.0, 3.0], requires_grad=True)
    mean = over_processes(local, Two(0, 2))
    assert mean.tolist() == [3.0, 2.0]
    mean.sum().backward()
    assert local.grad.tolist() == [1.0, 1.0] and over_processes(local, World()) is local


@pytest.mark.parametrize("config", [SoftPQConfig, SoftVQConfig])
def test_a_soft_quantiser_gives_the_autoencoder_its_codebooks_and_they_are_saved_with_it(config, tmp_path):
    regulariser = config(codebooks=2, size=5).build(context())
    autoencoder = Autoencoder(regulariser.adapt(MODEL)).eval()
    images = torch.rand(2, 3, 32, 32)
    code, latents = autoencoder.encoder(images), autoencoder.encode(images)
    assert torch.equal(latents, autoencoder.latent_maps[0](code)[0]) and not torch.equal(latents, code)
    autoencoder.save(tmp_path)
    loaded = Autoencoder.load(tmp_path)
    assert torch.equal(loaded.encode(images), latents) and loaded.config == autoencoder.config


def test_channels_that_do_not_divide_into_codebooks_are_refused():
    with pytest.raises(UserError, match="4 channels do not divide into 3 codebooks"):
        SoftPQConfig(codebooks=3).build(context())
    with pytest.raises(UserError, match="4 channels"):
        build_config(
            AutoencoderConfig,
            {"channels": 4, "latent_map": {"name": "soft_codebook", "soft_codebook": {"codebooks": 3}}},
        )


def test_a_head_starts_with_every_patch_near_the_tokens_at_its_place():
    head = FeatureHead(4, 2, 8, 3)
    latents = torch.arange(8.0).view(1, 4, 2)
    mixed = head.mixed(latents)[0]
    assert mixed.shape == (8, 2) and (mixed[1:] >= mixed[:-1]).all() and torch.equal(mixed[0], latents[0, 0])
    assert torch.equal(FeatureHead(4, 2, 4, 3).mixed(latents), latents)
    assert torch.equal(FeatureHead(4, 2, 1, 3).mixed(latents)[0, 0], (latents[0, 1] + latents[0, 2]) / 2)


def frozen(generator, patches=5, width=3):
    return {
        "feature_patches": torch.randn(2, patches, width, generator=generator),
        "feature_global": torch.randn(2, width, generator=generator),
    }


class Sizes:
    patches, width = 5, 3


def encoded(generator) -> Encoded:
    latents = torch.randn(2, TOKENS, CHANNELS, generator=generator, requires_grad=True)
    return Encoded(latents, latents, None, latents)


def test_reals_is_one_minus_the_cosine_of_patches_and_of_the_whole(generator):
    torch.manual_seed(0)
    regulariser, code, batch = RealsConfig(hidden=8).build(context(Sizes)), encoded(generator), frozen(generator)
    read, whole = regulariser.patches(code.latents), regulariser.whole(code.latents)
    patches = [cosine(read[b, n].tolist(), batch["feature_patches"][b, n].tolist()) for b in range(2) for n in range(5)]
    globals_ = [cosine(whole[b, 0].tolist(), batch["feature_global"][b].tolist()) for b in range(2)]
    expected = 1 - sum(patches) / 10 + 1 - sum(globals_) / 2
    assert regulariser.term(code, batch, StepRandom(0, 0)).item() == pytest.approx(expected, abs=1e-5)


def test_the_marginal_losses_are_their_formulas_and_vanish_within_their_margins(generator):
    z, f = torch.randn(2, 4, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    cosines, distances = [], []
    for b, i in itertools.product(range(2), range(4)):
        cosines.append(max(0, 1 - 0.5 - cosine(z[b, i].tolist(), f[b, i].tolist())))
        for j in range(4):
            difference = cosine(z[b, i].tolist(), z[b, j].tolist()) - cosine(f[b, i].tolist(), f[b, j].tolist())
            distances.append(max(0, abs(difference) - 0.25))
    assert marginal_cosine_loss(z, f, 0.5).item() == pytest.approx(sum(cosines) / len(cosines), abs=1e-5)
    assert marginal_distance_loss(z, f, 0.25).item() == pytest.approx(sum(distances) / len(distances), abs=1e-5)
    assert marginal_cosine_loss(z, z + 1e-3 * f, 0.5) == marginal_distance_loss(z, z + 1e-3 * f, 0.25) == 0
    rotated = z @ torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q  # distances know no axes
    assert marginal_distance_loss(z, rotated, 0.0).item() == pytest.approx(0, abs=1e-6)


def test_vavae_is_the_sum_of_its_two_parts_with_the_published_margins(generator):
    torch.manual_seed(0)
    regulariser, code, batch = VAVAEConfig().build(context(Sizes)), encoded(generator), frozen(generator)
    mixed = regulariser.head.mixed(code.latents)
    expected = marginal_cosine_loss(regulariser.head.project(mixed), batch["feature_patches"], 0.5)
    expected = expected + marginal_distance_loss(mixed, batch["feature_patches"], 0.25)
    torch.testing.assert_close(regulariser.term(code, batch, StepRandom(0, 0)), expected)


def test_an_adaptive_regulariser_pulls_at_the_encoders_last_layer_as_the_reconstruction_does(features):
    torch.manual_seed(0)
    regulariser = VAVAEConfig(weight=0.3, adaptive=True).build(context(features))
    objective = AutoencoderObjective(Autoencoder(MODEL), [regulariser], LossConfig(), features=features)
    terms = values(objective({"image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)}, StepRandom(0, 0)))
    weight = objective.autoencoder.encoder.to_latent.weight
    pulls = [torch.autograd.grad(terms[name], weight, retain_graph=True)[0].norm() for name in ("l2", "vavae")]
    torch.testing.assert_close(terms["weighted/vavae"], 0.3 * pulls[0] / (pulls[1] + 1e-4) * terms["vavae"].detach())


def test_frozen_features_are_the_models_own_of_normalised_and_resized_images(features):
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    patches, whole = features(images)
    resized = functional.interpolate(images, size=(32, 32), mode="bicubic", antialias=True)
    tokens = features.frozen.vit.forward_features(resized)  # this model's mean and deviation are 0.5: images in [-1, 1]
    torch.testing.assert_close(patches, tokens[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole, tokens[:, 0], rtol=1e-4, atol=1e-5)
    assert patches.shape == (2, features.patches, features.width)
    assert not features.train().training and not any(p.requires_grad for p in features.parameters())


def test_the_digits_features_are_a_function_of_the_seed_and_lie_in_the_folder(tmp_path):
    config = build_config(FeatureConfig, {"source": "digits", "digits": {"steps": 2, "width": 8}})
    images = torch.rand(2, 3, 32, 32)
    made = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("a", 0)):
        state = torch.random.get_rng_state()
        model = build_features(config, 32)
        model.prepare(FeatureContext(seed, tmp_path / name, World()))
        assert torch.equal(torch.random.get_rng_state(), state)
        made.setdefault((name, seed), []).append(model(images)[0])
    assert torch.equal(made["a", 0][0], made["a", 0][1]) and torch.equal(made["a", 0][0], made["b", 0][0])
    assert not torch.equal(made["a", 0][0], made["c", 1][0]) and made["a", 0][0].shape == (2, 16, 8)
    [file] = (tmp_path / "a").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match=file.name):
        build_features(config, 32).prepare(FeatureContext(0, tmp_path / "a", World()))


def test_features_of_the_digits_are_those_of_the_weights_that_lie_in_the_folder(tmp_path, generator):
    sizes = {"stages.0": (8, 1, 3, 3), "stages.1": (8, 8, 3, 3), "stages.2": (8, 8, 3, 3), "classify": (10, 8)}
    tensors = {f"{name}.weight": torch.randn(size, generator=generator) for name, size in sizes.items()}
    tensors |= {f"{name}.bias": torch.randn(size[0], generator=generator) for name, size in sizes.items()}
    write_tensors(tmp_path / "digit_features_8_2_0.safetensors", tensors)
    model = build_features(build_config(FeatureConfig, {"source": "digits", "digits": {"steps": 2, "width": 8}}), 32)
    model.prepare(FeatureContext(0, tmp_path, World()))
    images = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    x = images[:, :1]
    for number in range(3):
        x = functional.conv2d(x if number == 0 else functional.gelu(x), *layer(tensors, number), stride=2, padding=1)
    patches, whole = model(images)
    assert torch.equal(patches, x.flatten(2).transpose(1, 2)) and torch.equal(whole, functional.gelu(patches).mean(1))


def layer(tensors: dict[str, torch.Tensor], number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tensors[f"stages.{number}.weight"], tensors[f"stages.{number}.bias"]


def pairs() -> list[str]:
    return ["+".join(pair) for pair in itertools.combinations(REGULARISERS, 2)]


@pytest.mark.parametrize("name", [*REGULARISERS, *pairs()])
def test_any_one_and_any_two_regularisers_train_every_parameter_in_one_objective(name, features):
    quantiser = {"codebooks": 2, "size": 5, "alignment_weight": 0.1, "hidden": 8}
    small = {"softvq": quantiser, "soft_pq": quantiser, "reals": {"hidden": 8}}
    torch.manual_seed(0)
    chosen = build_config(RegulariserConfig, {"name": name, **small})
    built = [section.build(context(features, random_prior(CHANNELS))) for section in chosen.chosen]
    model = MODEL
    for regulariser in built:
        model = regulariser.adapt(model)
    objective = AutoencoderObjective(Autoencoder(model), built, LossConfig(), features=features, log_steps=1)
    terms = values(objective({"image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)}, StepRandom(0, 0)))
    terms["loss"].backward()
    assert [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []
    for part in name.split("+"):
        assert torch.isfinite(terms[part]) and terms[f"latent_gradient/{part}"] > 0


def test_the_logged_gradient_is_that_of_the_weighted_term_at_the_encoders_output(features):
    torch.manual_seed(0)
    built = [RealsConfig(weight=0.2).build(context(features))]
    objective = AutoencoderObjective(Autoencoder(MODEL), built, LossConfig(), features=features, log_steps=4)
    batch = {"image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)}
    assert not any("gradient" in name for step in (0, 1, 2) for name in values(objective(batch, StepRandom(0, step))))
    terms = values(objective(batch, StepRandom(0, 3)))
    codes = []
    objective.autoencoder.encoder.register_forward_hook(lambda m, i, output: codes.append(output))
    terms_again = values(objective(batch, StepRandom(0, 3)))
    [gradient] = torch.autograd.grad(terms_again["reals"], codes[0])
    torch.testing.assert_close(terms["latent_gradient/reals"], 0.2 * gradient.norm())
