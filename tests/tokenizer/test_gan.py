"""Losses of the adversarial game, its augmentation and its regularisers, each against an exact or a slow reference."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flowprior.distributed import World
from flowprior.errors import UserError
from tokenizer.losses.consistency import consistency_loss
from tokenizer.losses.diff_augment import DRAWS, diff_augment
from tokenizer.losses.discriminators import DISCRIMINATORS, DiscriminatorConfig, build_discriminator
from tokenizer.losses.discriminators.dino import DinoConfig
from tokenizer.losses.discriminators.patchgan import PatchGANConfig
from tokenizer.losses.gan import GAN_LOSSES
from tokenizer.losses.gradients import adaptive_weight, sample_gradient_norm, shared_gradient_norm
from tokenizer.losses.lecam import LeCam
from tokenizer.losses.schedule import ramp


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


EXPECTED = {  # discriminator of (real, fake), generator of fake
    "hinge": (lambda r, f: (max(0, 1 - r) + max(0, 1 + f)) / 2, lambda f: -f),
    "non_saturating": (
        lambda r, f: -(math.log(sigmoid(r)) + math.log(1 - sigmoid(f))) / 2,
        lambda f: -math.log(sigmoid(f)),
    ),
    "vanilla": (
        lambda r, f: -(math.log(sigmoid(r)) + math.log(1 - sigmoid(f))) / 2,
        lambda f: math.log(1 - sigmoid(f)),
    ),
}


@pytest.mark.parametrize("kind", GAN_LOSSES)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5), st.lists(st.floats(-5, 5), min_size=1, max_size=5))
def test_a_game_is_what_its_formula_says(kind, real, fake):
    discriminator, generator = EXPECTED[kind]
    pairs = [discriminator(r, f) for r in real for f in fake]  # both are means, so the mean over pairs is their sum's
    real, fake = torch.tensor(real, dtype=torch.float64), torch.tensor(fake, dtype=torch.float64)
    assert GAN_LOSSES[kind].discriminator(real, fake).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
    expected = sum(generator(f) for f in fake.tolist()) / len(fake)
    assert GAN_LOSSES[kind].generator(fake).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", GAN_LOSSES)
@pytest.mark.parametrize("start", [-2.0, 2.0])
def test_a_generator_with_one_parameter_learns_to_sit_where_the_data_are(kind, start):
    place, slope = torch.tensor(start, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    data, game = torch.tensor(0.5), GAN_LOSSES[kind]

    def logits(x):
        return slope * (x - 0.5)

    visited = []
    for _ in range(400):
        loss = game.discriminator(logits(data), logits(place.detach())) + 0.1 * slope.square()
        [gradient] = torch.autograd.grad(loss, slope)
        slope.data -= 0.2 * gradient
        [gradient] = torch.autograd.grad(game.generator(logits(place)), place)
        place.data -= 0.05 * gradient
        visited.append(place.item())
    assert abs(sum(visited[-100:]) / 100 - 0.5) < 0.15


@pytest.mark.parametrize("start, steps", [(0, 0), (0, 10), (5, 0), (5, 4)])
def test_a_ramp_is_zero_before_its_start_and_reaches_one_after_its_steps(start, steps):
    shares = [ramp(step, start, steps) for step in range(30)]
    assert shares[:start] == [0.0] * start and shares[start + max(steps, 1) - 1 :] == [1.0] * (
        31 - start - max(steps, 1)
    )
    grown = shares[start : start + max(steps, 1)]
    assert grown == pytest.approx([(i + 1) / max(steps, 1) for i in range(len(grown))])


def slow_augment(image: torch.Tensor, draws: list[float], kinds: tuple[str, ...], cutout: float) -> torch.Tensor:
    """One image ``(3, H, W)``, pixel by pixel."""
    brightness, saturation, contrast, down, right, top, left = draws
    _, h, w = image.shape
    if "colour" in kinds:
        image = image + (brightness - 0.5)
        grey = image.mean(0, keepdim=True)
        image = grey + (image - grey) * (2 * saturation)
        image = image.mean() + (image - image.mean()) * (contrast + 0.5)
    if "translation" in kinds:
        dy, dx = round((2 * down - 1) * h / 8), round((2 * right - 1) * w / 8)
        moved = torch.zeros_like(image)
        for y in range(h):
            for x in range(w):
                if 0 <= y + dy < h and 0 <= x + dx < w:
                    moved[:, y + dy, x + dx] = image[:, y, x]
        image = moved
    if "cutout" in kinds:
        image = image.clone()
        tall, wide = round(h * cutout), round(w * cutout)
        first_y, first_x = int(top * (h + 1)) - tall // 2, int(left * (w + 1)) - wide // 2
        for y in range(max(0, first_y), min(h, first_y + tall)):
            for x in range(max(0, first_x), min(w, first_x + wide)):
                image[:, y, x] = 0
    return image


@pytest.mark.parametrize("kinds", [("colour",), ("translation",), ("cutout",), ("colour", "translation", "cutout"), ()])
@pytest.mark.parametrize("cutout", [0.2, 0.5])
def test_augmentation_of_a_batch_is_that_of_its_images_pixel_by_pixel(kinds, cutout, generator):
    images = torch.rand(6, 3, 16, 16, generator=generator) * 2 - 1
    draws = torch.rand(6, DRAWS, generator=generator)
    expected = torch.stack([slow_augment(i, d.tolist(), kinds, cutout) for i, d in zip(images, draws)])
    torch.testing.assert_close(diff_augment(images, draws, kinds, cutout), expected)


def test_augmentation_passes_gradients_and_does_the_same_to_an_image_wherever_it_stands(generator):
    images = (torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1).requires_grad_()
    draws = torch.rand(2, DRAWS, generator=generator)
    together = diff_augment(images, draws)
    together.square().sum().backward()
    assert (images.grad.abs().sum((1, 2, 3)) > 0).all()
    torch.testing.assert_close(together[1:], diff_augment(images[1:], draws[1:]))
    assert not torch.equal(together[0], diff_augment(images[:1], draws[1:])[0])


def test_lecam_is_its_formula_with_means_that_run_from_the_first_step_on(generator):
    lecam, decay = LeCam(decay=0.9), 0.9
    steps = [(torch.randn(5, generator=generator) + 1, torch.randn(5, generator=generator) - 1) for _ in range(4)]
    assert lecam(*steps[0]) == 0
    a_real = a_fake = None
    for real, fake in steps:
        if a_real is not None:
            expected = sum(max(0.0, r - a_fake) ** 2 for r in real.tolist()) / 5
            expected += sum(max(0.0, a_real - f) ** 2 for f in fake.tolist()) / 5
            assert lecam(real, fake).item() == pytest.approx(expected, rel=1e-5)
        lecam.update(real.mean(), fake.mean())
        r, f = real.mean().item(), fake.mean().item()
        a_real, a_fake = (
            (r, f) if a_real is None else (decay * a_real + (1 - decay) * r, decay * a_fake + (1 - decay) * f)
        )
    again = LeCam(decay=0.9)
    again.load_state_dict(lecam.state_dict())
    assert again(*steps[0]) == lecam(*steps[0]) > 0


def test_consistency_is_the_mean_square_of_the_difference():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([2.0, 5.0])
    assert consistency_loss(a, b) == 5.0 and consistency_loss(a, a) == 0


def test_an_adaptive_weight_is_the_ratio_of_the_gradients_at_the_layer():
    weight = torch.tensor([[1.0, 2.0]], requires_grad=True)
    x = torch.tensor([3.0, 4.0])
    anchor, term = 6 * (weight @ x).sum(), 2 * (weight @ x).sum()
    assert shared_gradient_norm(anchor, weight, World()).item() == pytest.approx(30)
    assert adaptive_weight(anchor, term, weight, World()).item() == pytest.approx(3, rel=1e-4)
    assert adaptive_weight(anchor, 0 * term, weight, World()).item() == 1e4
    (anchor + term).backward()  # the graph is still there


def test_the_gradient_at_samples_is_that_of_autograd_and_zero_for_what_does_not_reach_them():
    samples, other = torch.randn(3, 2, requires_grad=True), torch.randn(2, requires_grad=True)
    assert sample_gradient_norm(samples.square().sum(), samples, World()).item() == pytest.approx(
        (2 * samples).norm().item()
    )
    assert sample_gradient_norm(other.sum(), samples, World()) == 0


def test_the_gradient_at_samples_of_two_alike_micro_batches_is_that_of_both_together():
    half = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([half, half]).requires_grad_()
    together = sample_gradient_norm(whole.square().mean(), whole, World())
    half.requires_grad_()
    torch.testing.assert_close(sample_gradient_norm(half.square().mean(), half, World(), micro_batches=2), together)


SMALL = {"dino": DinoConfig("vit_tiny_patch16_224", False, size=32, blocks=(2, 5)), "patchgan": PatchGANConfig(8, 2)}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_discriminator_looks_at_images_one_by_one_and_trains_what_it_says(name, generator):
    torch.manual_seed(0)
    network = build_discriminator(DiscriminatorConfig(name, **SMALL), 32).train()
    images = torch.rand(3, 3, 32, 32, generator=generator) * 2 - 1
    logits = network(images)
    assert logits.shape[0] == 3 and logits.dim() == 2 and logits.shape[1] > 1
    torch.testing.assert_close(network.eval()(images)[1:], network(images[1:]))
    logits.mean().backward()
    trained = {id(p) for p in network.trained.parameters()}
    assert trained and all((p.grad is not None) == (id(p) in trained) for p in network.parameters())


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_every_trained_layer_of_a_discriminator_has_spectral_norm_one(name):
    torch.manual_seed(0)
    network = build_discriminator(DiscriminatorConfig(name, **SMALL), 32).train()
    for _ in range(60):
        network(torch.zeros(1, 3, 32, 32))
    layers = [m for m in network.trained.modules() if isinstance(m, nn.Conv2d)]
    assert layers
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2).item() == pytest.approx(1, abs=0.05)


def test_the_heads_of_the_dino_discriminator_look_at_the_blocks_that_they_are_told(generator):
    torch.manual_seed(0)
    network = build_discriminator(DiscriminatorConfig("dino", **SMALL), 32)
    images = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    x, expected = network.frozen.embed(images).tokens, []
    for number, block in enumerate(network.frozen.vit.blocks, 1):
        x = block(x)
        if number in (2, 5):
            expected.append(x[:, 1:])
    for found, wanted in zip(network.frozen.after_blocks(images, (2, 5)), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_head_on_a_block_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="12 blocks"):
        DinoConfig("vit_tiny_patch16_224", False, size=32, blocks=(2, 13)).build(32)
    for blocks in ((), (0, 2), (3, 2), (2, 2)):
        with pytest.raises(UserError, match="numbers from 1 on, ascending"):
            DinoConfig("vit_tiny_patch16_224", False, size=32, blocks=blocks).build(32)
