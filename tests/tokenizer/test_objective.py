import json

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.flow.path import PathDraw
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.time_grid import TimeGrid
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import build_config
from flowprior.training.randomness import StepRandom
from networks import values
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, Encoded, ViTConfig
from tokenizer.losses.perceptual import PerceptualLoss
from tokenizer.objective import AutoencoderObjective, LossConfig
from tokenizer.regularisers import REGULARISERS, RegulariserConfig
from tokenizer.regularisers.base import Regulariser, RegulariserContext
from tokenizer.regularisers.flow import FlowConfig
from tokenizer.regularisers.kl import KLConfig

TOKENS, CHANNELS = 6, 4


def scramble(module: torch.nn.Module) -> None:
    """Weights away from the zeros of their initialisation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))


@pytest.fixture(scope="module")
def prior() -> FlowPrior:
    velocity = VelocityMLP(CHANNELS, width=16, depth=1)
    scramble(velocity)
    return FlowPrior(velocity, TargetMap(torch.zeros(9), torch.ones(()), torch.randn(9, CHANNELS)), {"name": "noise"})


def context(prior: FlowPrior | None) -> RegulariserContext:
    return RegulariserContext(prior, AutoencoderConfig(32, 8, TOKENS, CHANNELS), 10, 0, World())


def build(names: str, prior: FlowPrior | None) -> list[Regulariser]:
    return [section.build(context(prior)) for section in build_config(RegulariserConfig, {"name": names}).chosen]


def make(regularisers: str, prior: FlowPrior | None, **loss) -> AutoencoderObjective:
    built = build(regularisers, prior)
    torch.manual_seed(0)
    vit = ViTConfig(width=24, depth=1, heads=3)
    gaussian = any(regulariser.needs_gaussian for regulariser in built)
    model = Autoencoder(AutoencoderConfig(32, 8, TOKENS, CHANNELS, gaussian, vit, vit))
    perceptual = PerceptualLoss() if "perceptual_weight" in loss else None
    return AutoencoderObjective(model, built, LossConfig(**loss), perceptual=perceptual)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return {
        "image": torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    }


@pytest.mark.parametrize("pixel", ["l1", "l2"])
def test_the_loss_is_the_weighted_sum_of_its_terms(prior, batch, pixel):
    objective = make("flow+kl", prior, pixel=pixel, pixel_weight=0.7, perceptual_weight=0.3)
    terms = values(objective(batch, StepRandom(0, 5)))
    names = {pixel, "lpips", "flow", "kl"}
    assert set(terms) == {"loss", "latents", *names, *(f"weighted/{name}" for name in names)}
    torch.testing.assert_close(terms["loss"], sum(terms[f"weighted/{name}"] for name in names))
    expected = 0.7 * terms[pixel] + 0.3 * terms["lpips"] + 0.01 * terms["flow"] + 1e-3 * terms["kl"]
    torch.testing.assert_close(terms["loss"], expected)
    assert all(terms[name] > 0 for name in (pixel, "lpips", "flow", "kl"))
    assert not terms["latents"].requires_grad


def test_without_regularisers_the_loss_is_the_pixels_alone(batch):
    objective = make("none", None)
    terms = values(objective(batch, StepRandom(0, 0)))
    assert set(terms) == {"loss", "l2", "weighted/l2", "latents"} and terms["loss"] == terms["l2"]
    images = batch["image"].float() / 127.5 - 1
    torch.testing.assert_close(terms["l2"], torch.nn.functional.mse_loss(objective.autoencoder(images)[0], images))


@pytest.mark.parametrize("ramp, step, share", [(0, 0, 1), (10, 0, 0.1), (10, 4, 0.5), (10, 9, 1), (10, 500, 1)])
def test_lpips_grows_linearly_to_its_weight(batch, ramp, step, share):
    objective = make("none", None, perceptual_weight=2.0, perceptual_ramp_steps=ramp)
    terms = values(objective(batch, StepRandom(0, step)))
    torch.testing.assert_close(terms["loss"] - terms["l2"], 2.0 * share * terms["lpips"])


def test_lpips_is_zero_between_equal_images_and_positive_between_others(batch):
    distance = PerceptualLoss()
    images = batch["image"].float() / 127.5 - 1
    assert distance(images, images) == 0
    assert distance(images, images.flip(-1)) > 0


def test_lpips_is_frozen_stays_in_evaluation_and_passes_gradients_to_the_images(batch):
    distance = PerceptualLoss().train()
    images = (batch["image"].float() / 127.5 - 1).requires_grad_()
    distance(images, images.detach().flip(-1)).backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters()) and not any(
        module.training for module in distance.modules()
    )


def test_missing_vgg_weights_are_one_sentence_that_says_where_to_put_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="vgg16-397923af.pth") as caught:
        PerceptualLoss().load()
    assert (
        str(tmp_path) in str(caught.value)
        and "\n" not in str(caught.value)
        and "perceptual_weight=0" in str(caught.value)
    )


def test_kl_is_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    mean, logvar = (
        torch.randn(3, TOKENS, CHANNELS, generator=generator),
        torch.randn(3, TOKENS, CHANNELS, generator=generator),
    )
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).mean()
    term = KLConfig().build(context(None)).term(Encoded(mean, mean, logvar), {}, StepRandom(0, 0))
    torch.testing.assert_close(term, expected)
    zero = torch.zeros(1, 1, 1)
    assert KLConfig().build(context(None)).term(Encoded(zero, zero, zero), {}, StepRandom(0, 0)) == 0


@pytest.mark.parametrize("group", [1, 2, 4])
def test_the_flow_regulariser_is_the_priors_alignment_loss_with_the_same_noise(prior, group):
    latents = torch.randn(3, TOKENS, CHANNELS, requires_grad=True)
    regulariser = FlowConfig(pairs=2, group_size=group).build(context(prior))
    size = max(divisor for divisor in (1, 2, 3, 6) if divisor <= group)
    random = StepRandom(0, 7)
    noise, t = (
        random.normal("alignment noise", 3, 2, TOKENS, CHANNELS),
        random.times("alignment t", 3, 2, TOKENS // size),
    )
    term = regulariser.term(Encoded(latents, latents, None), {}, random)
    slow = torch.zeros(())
    for image in range(3):
        for pair in range(2):
            for token in range(TOKENS):
                time, x0, y = t[image, pair, token // size], noise[image, pair, token], latents[image, token]
                slow = slow + (prior.velocity((1 - time) * x0 + time * y, time) - (y - x0)).square().mean() / (
                    3 * 2 * TOKENS
                )
    torch.testing.assert_close(term, slow)
    gradient, slow_gradient = (torch.autograd.grad(value, latents)[0] for value in (term, slow))
    torch.testing.assert_close(gradient, slow_gradient, rtol=1e-4, atol=1e-6)
    assert not any(p.requires_grad for p in regulariser.parameters()) and regulariser.saved() == {}


def test_on_a_grid_of_times_the_flow_regulariser_is_the_priors_loss_at_the_grids_times_of_that_step(prior):
    latents = torch.randn(2, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(0))
    term = FlowConfig(pairs=3, group_size=2, time_grid=8, grid_steps=5).build(context(prior))
    offsets = []
    for step in (4, 5, 9, 10):
        found = term.term(Encoded(latents, latents, None), {}, StepRandom(3, step)).item()
        offsets.append(StepRandom(3, step, 1, 2).uniform_of_period("alignment grid", 5))
        grid, random = TimeGrid(8, offsets[-1]), StepRandom(3, step)
        t = grid.times(grid.strata(random.times("alignment t", 2, 3, 3)))
        noise = random.normal("alignment noise", 2, 3, TOKENS, CHANNELS)
        expected = prior.alignment_loss(latents, PathDraw(noise, t)).item()
        assert found == pytest.approx(expected, rel=1e-5)
    assert offsets[0] != offsets[1] == offsets[2] != offsets[3]


@pytest.mark.parametrize("values", [{"time_grid": -1}, {"grid_steps": 0}])
def test_a_grid_of_times_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        FlowConfig(**values)


@pytest.mark.parametrize(
    "name, kinds",
    [("none", []), ("flow", ["flow"]), ("kl", ["kl"]), ("flow+kl", ["flow", "kl"]), ("kl+flow", ["kl", "flow"])],
)
def test_regularisers_are_built_by_name_in_the_order_given(prior, name, kinds):
    assert [r.name for r in build(name, prior)] == kinds


@pytest.mark.parametrize("name", ["bogus", "flow+bogus", "flow+none", "", "flow+", "flow,kl", "flow+flow"])
def test_names_that_are_no_regularisers_are_refused_with_the_list_of_those_that_are(name):
    with pytest.raises(UserError, match=", ".join(REGULARISERS)):
        build_config(RegulariserConfig, {"name": name})


def test_what_a_regulariser_says_of_itself_is_json_with_its_weight_and_prior(prior):
    for regulariser in build("flow+kl", prior):
        described = json.loads(json.dumps(regulariser.describe()))
        assert described["name"] == regulariser.name and described["weight"] == regulariser.weight
    assert FlowConfig().build(context(prior)).describe()["prior"] == prior.fingerprint


def test_latent_noise_of_another_level_for_every_image_reaches_the_decoder_and_no_regularisers_term(prior, batch):
    clean, noisy = make("flow", prior), make("flow", prior, latent_noise_std=0.3)
    random = StepRandom(0, 5)
    terms, disturbed = values(clean(batch, random)), values(noisy(batch, random))
    assert torch.equal(terms["flow"], disturbed["flow"]) and torch.equal(terms["latents"], disturbed["latents"])
    level = 0.3 * random.normal("latent noise level", 2, 1, 1).abs()
    noise = level * random.normal("latent noise", 2, TOKENS, CHANNELS)
    assert level[0] != level[1]
    reconstruction = noisy.autoencoder.decode(terms["latents"] + noise)
    images = batch["image"].float() / 127.5 - 1
    torch.testing.assert_close(disturbed["l2"], torch.nn.functional.mse_loss(reconstruction, images))
    assert disturbed["l2"] != terms["l2"]


def test_interpolated_latent_noise_takes_from_the_latents_what_it_adds_and_no_regularisers_term_sees_it(prior, batch):
    clean = make("flow", prior)
    noisy = make("flow", prior, latent_noise_std=0.3, latent_noise_kind="interpolated")
    random = StepRandom(0, 5)
    terms, disturbed = values(clean(batch, random)), values(noisy(batch, random))
    assert torch.equal(terms["flow"], disturbed["flow"]) and torch.equal(terms["latents"], disturbed["latents"])
    share = random.uniform("latent noise share", 2, 1, 1)
    noise = 0.3 * random.normal("latent noise", 2, TOKENS, CHANNELS)
    assert share[0] != share[1]
    reconstruction = noisy.autoencoder.decode(torch.lerp(terms["latents"], noise, share))
    images = batch["image"].float() / 127.5 - 1
    torch.testing.assert_close(disturbed["l2"], torch.nn.functional.mse_loss(reconstruction, images))
    assert disturbed["l2"] != terms["l2"]


@pytest.mark.parametrize("values", [{"pixel_weight": -1}, {"perceptual_weight": -0.1}, {"perceptual_ramp_steps": -1}])
def test_negative_weights_are_refused(values):
    with pytest.raises(ValueError, match="at least 0"):
        LossConfig(**values)


@pytest.mark.parametrize("std", [-0.1, float("nan"), float("inf")])
def test_noise_that_is_no_finite_number_from_0_on_is_refused(std):
    with pytest.raises(ValueError, match="latent_noise_std"):
        LossConfig(latent_noise_std=std)
