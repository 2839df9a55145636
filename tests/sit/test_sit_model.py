import math

import pytest
import torch
from scipy import stats

from flowprior.flow.times import TimeConfig
from flowprior.training.randomness import StepRandom
from plain_sit import predict, random_sit
from sit.model import SIZES, SiTConfig

TOKENS, CHANNELS, CLASSES = 5, 3, 4
LABELS = torch.tensor([0, 3, 3, 1])


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(4, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size, millions", [("S", 33), ("B", 130), ("L", 458), ("XL", 675)])
def test_sizes_have_the_published_numbers_of_parameters(size, millions):
    with torch.device("meta"):  # latents of 32 x 32 x 4 in patches of 2 x 2
        model = SiTConfig(size=size).build(tokens=256, channels=16, num_classes=1000)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


@pytest.mark.parametrize("size", ["S", "B", "L", "XL"])
def test_the_lightning_block_has_the_plain_ones_parameters_to_two_thousandths(size):
    with torch.device("meta"):
        plain, lightning = (
            sum(p.numel() for p in SiTConfig(size=size, block=block).build(256, 16, 1000).parameters())
            for block in ("plain", "lightning")
        )
    assert lightning == pytest.approx(plain, rel=2e-3)


def test_the_defaults_are_sit_b_and_a_size_goes_with_its_own_numbers_only():
    assert {name: getattr(SiTConfig(), name) for name in SIZES["B"]} == SIZES["B"]
    assert SiTConfig(size="L", depth=24).width == 1024
    with pytest.raises(ValueError, match="L has width 1024, not 768"):
        SiTConfig(size="L", width=768)
    with pytest.raises(ValueError, match="S, B, L, XL"):
        SiTConfig(size="XXL")


@pytest.mark.parametrize(
    "values",
    [
        {"width": 20, "heads": 3},
        {"width": 15, "heads": 5},
        {"depth": -1},
        {"pairs": 0},
        {"label_drop": 1.0},
        {"prediction_clip": 0.0},
        {"time_shift": "0"},
        {"time_shift": "much"},
    ],
)
def test_impossible_choices_are_refused(values):
    with pytest.raises(ValueError):
        SiTConfig(**values)


@pytest.mark.parametrize("block", ["plain", "lightning"])
def test_a_new_network_predicts_a_velocity_of_zero(block, latents):
    model = SiTConfig(width=16, depth=2, heads=2, block=block).build(TOKENS, CHANNELS, CLASSES)
    assert torch.equal(model.velocity(latents, torch.rand(4), LABELS), torch.zeros_like(latents))


@pytest.mark.parametrize("block", ["plain", "lightning"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_the_network_is_that_of_the_papers_equations(block, positions, latents):
    model, t = random_sit(block=block, positions=positions), torch.tensor([0.0, 0.3, 0.31, 1.0])
    expected = [predict(model, *image) for image in zip(latents, t.double().tolist(), LABELS.tolist())]
    torch.testing.assert_close(model(latents, t, LABELS), torch.stack(expected).float(), rtol=1e-3, atol=2e-4)


def test_sinusoidal_positions_are_sines_and_cosines_of_the_tokens_number():
    positions = random_sit(width=8).positions
    for token in range(TOKENS):
        angles = [token / 10_000 ** (k / 4) for k in range(4)]
        expected = [*map(math.sin, angles), *map(math.cos, angles)]
        torch.testing.assert_close(positions[token], torch.tensor(expected))


RECIPES = {
    "plain": {},
    "lightning": {"block": "lightning", "positions": "learned"},
    "data": {"prediction": "data", "prediction_clip": 0.2},
    "shifted": {"times": TimeConfig("logit_normal", 0.3, 0.8), "time_shift": "2.5"},
    "pairs": {"pairs": 3, "label_drop": 0.5, "time_shift": "auto"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_and_gradients_are_those_of_the_equations_image_by_image(recipe, latents):
    model, random = random_sit(**RECIPES[recipe]), StepRandom(0, 7)
    config = model.config
    loss = model.loss(latents, LABELS, random)

    noise, u = random.normal("noise", 4, config.pairs, TOKENS, CHANNELS), random.times("t", 4, config.pairs)
    dropped = random.uniform("label drop", 4, config.pairs) < config.label_drop
    factor = {"1": 1.0, "2.5": 2.5, "auto": math.sqrt(TOKENS * CHANNELS / 4096)}[config.time_shift]
    terms = []
    for image in range(4):
        for pair in range(config.pairs):
            t = u[image, pair].item()
            if config.times.distribution == "logit_normal":
                t = 1 / (1 + math.exp(-stats.norm.ppf(t, 0.3, 0.8)))
            noisiness = 1 - t  # the papers' time, which runs from data to noise
            t = 1 - factor * noisiness / (1 + (factor - 1) * noisiness)
            x0, x1 = noise[image, pair].double(), latents[image].double()
            x_t, label = (1 - t) * x0 + t * x1, CLASSES if dropped[image, pair] else LABELS[image].item()
            predicted = predict(model, x_t, t, label)
            if config.prediction == "data":
                left = max(1 - t, 0.2)
                terms.append(((predicted - x_t) / left - (x1 - x_t) / left).square().mean())
            else:
                terms.append((predicted - (x1 - x0)).square().mean())
    slow = torch.stack(terms).mean()
    torch.testing.assert_close(loss.double(), slow, rtol=1e-4, atol=1e-6)
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, parameters.values())
    for name, gradient, expected in zip(parameters, gradients, torch.autograd.grad(slow, parameters.values())):
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            gradient, expected, rtol=1e-3, atol=1e-4 * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("pairs", [1, 2])
def test_the_loss_of_a_batch_is_the_mean_of_its_micro_batches(pairs, latents):
    model = random_sit(pairs=pairs, label_drop=0.5)
    whole = model.loss(latents, LABELS, StepRandom(0, 3))
    halves = [
        model.loss(latents[part], LABELS[part], StepRandom(0, 3, slot, 2))
        for slot, part in enumerate([slice(0, 2), slice(2, 4)])
    ]
    torch.testing.assert_close(sum(halves) / 2, whole)


def exact_velocity(x, t, mean=1.5, std=0.6):
    """Of data from N(mean, std^2) in every number."""
    t = t[:, None, None]
    return mean + (t * std**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * std**2) * (x - t * mean)


def exact_model(prediction):
    model = random_sit(prediction=prediction, prediction_clip=0.05)
    to_data = prediction == "data"
    model.forward = lambda x, t, labels: (
        x + (1 - t)[:, None, None] * exact_velocity(x, t) if to_data else exact_velocity(x, t)
    )
    return model


def test_the_exact_networks_of_both_predictions_have_one_velocity_and_one_loss():
    by_velocity, by_data = exact_model("velocity"), exact_model("data")
    x, t = torch.randn(64, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(0)), torch.rand(64) * 0.949
    labels = torch.zeros(64, dtype=torch.long)
    torch.testing.assert_close(by_data.velocity(x, t, labels), by_velocity.velocity(x, t, labels), rtol=1e-4, atol=1e-5)
    data = 1.5 + 0.6 * x
    for model in (by_velocity, by_data):
        model.config.time_shift = "20"  # few of whose times lie where the divisor is bounded
    losses = [model.loss(data, labels, StepRandom(0, 2)).item() for model in (by_velocity, by_data)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_the_bound_of_the_divisor_bounds_the_velocity_of_predicted_data_at_the_end():
    model = random_sit(prediction="data", prediction_clip=0.1)
    model.forward = lambda x, t, labels: x + 1
    x = torch.zeros(3, TOKENS, CHANNELS)
    found = model.velocity(x, torch.tensor([0.5, 0.95, 1.0]), LABELS[:3])
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([2.0, 10.0, 10.0]))


def seen_in_training(model, images: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Times and labels that the network meets, all true labels being 2."""
    times, labels = [], []
    model.forward = lambda x, t, l: times.append(t) or labels.append(l) or x
    for step in range(steps):
        model.loss(torch.zeros(images, TOKENS, CHANNELS), torch.full((images,), 2), StepRandom(0, step))
    return torch.cat(times), torch.cat(labels)


def test_labels_are_dropped_at_the_rate_that_is_asked_for():
    _, labels = seen_in_training(random_sit(label_drop=0.3), 100, 40)
    dropped = labels == CLASSES
    assert ((labels == 2) | dropped).all()
    assert stats.binomtest(int(dropped.sum()), 4000, 0.3).pvalue > 1e-3


@pytest.mark.parametrize("factor", ["1", "0.5", "3"])
def test_training_times_are_stratified_over_the_batch_and_follow_the_shifted_distribution(factor):
    model = random_sit(times=TimeConfig("logit_normal", 0.2, 0.9), time_shift=factor)
    t, _ = seen_in_training(model, 200, 20)
    # A shift by a moves the logit of t by -log a.
    u = stats.norm.cdf(torch.logit(t.double()).numpy() + math.log(float(factor)), 0.2, 0.9).reshape(20, 200)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert all(sorted((step * 200).astype(int)) == list(range(200)) for step in u)


def test_every_parameter_gets_a_gradient(latents):
    for block in ("plain", "lightning"):
        model = random_sit(block=block, positions="learned")
        model.loss(latents, LABELS, StepRandom(0, 0)).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("block", ["plain", "lightning"])
def test_under_bfloat16_the_loss_is_near_the_full_precisions(block, latents):
    model = random_sit(block=block)
    full = model.loss(latents, LABELS, StepRandom(0, 0))
    with torch.autocast("cpu", torch.bfloat16):
        half = model.loss(latents, LABELS, StepRandom(0, 0))
    assert half.dtype == torch.float32 and half != full
    torch.testing.assert_close(half, full, rtol=0.03, atol=0)
