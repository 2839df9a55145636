from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import special, stats

from flowprior.flow.times import TimeConfig
from flowprior.run.config import build_config
from flowprior.run.presets import config_from_command_line
from flowprior.training.randomness import StepRandom
from generation.generator import build_generator
from mar.attention import block_at, block_with_past, gather_tokens
from mar.config import GENERATORS, PRESETS, GeneratorConfig, MARStageConfig
from mar.masking import masked_count
from mar.model import MAR, SIZES, MARConfig

TOKENS, CHANNELS, CLASSES = 6, 3, 5
SMALL = dict(
    width=16,
    encoder_depth=1,
    decoder_depth=1,
    heads=2,
    buffer_tokens=2,
    head_width=12,
    head_depth=1,
    pairs=3,
    dropout=0.0,
)


def make(**options) -> MAR:
    """A small MAR whose every weight is away from the zeros of its initialisation."""
    model = MARConfig(**SMALL | options).build(TOKENS, CHANNELS, CLASSES).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(4, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 3, 3, 4])


@pytest.mark.parametrize(
    "size, whole, head",
    [
        ("mar_base", 207_517_216, 35_766_304),
        ("mar_efficient", 207_517_216 - 2 * 48 * 768, 35_766_304),
        ("mar_large", 477_781_536, 72_250_912),
        ("mar_huge", 941_723_680, 151_231_520),
    ],
)
def test_sizes_have_their_numbers_of_parameters(size, whole, head):
    with torch.device("meta"):
        model = MARConfig(size=size).build(tokens=64, channels=32, num_classes=1000)
    counts = [sum(p.numel() for p in part.parameters()) for part in (model, model.head)]
    assert counts == [whole, head]


def test_the_defaults_are_mar_b_and_the_digits_preset_is_mar_digits_with_one_class_token():
    defaults, digits = MARConfig(), config_from_command_line(MARStageConfig, PRESETS, "", []).model.mar
    assert {name: getattr(defaults, name) for name in SIZES["mar_base"]} == SIZES["mar_base"]
    assert {name: getattr(digits, name) for name in SIZES["mar_digits"]} == SIZES["mar_digits"] | {"buffer_tokens": 1}


@pytest.mark.parametrize("name, tokens", [("digits", 1), ("imagenet", 16)])
def test_an_efficient_preset_differs_from_its_own_in_buffer_tokens_and_sampler_only(name, tokens):
    plain, efficient = (
        config_from_command_line(MARStageConfig, PRESETS, "", ["--preset", preset, "run_dir=runs/x"])
        for preset in (name, f"{name}_efficient")
    )
    model, other = plain.model.mar, efficient.model.mar
    assert other.buffer_tokens == tokens and other.sampler.skip_unread and other.sampler.share_first
    efficient.model.mar = replace(other, size=model.size, buffer_tokens=model.buffer_tokens, sampler=model.sampler)
    assert efficient == plain


def test_a_size_goes_with_its_own_numbers_only():
    assert MARConfig(size="mar_large", head_depth=8).head_depth == 8
    for width in (512, 768):  # 768 is MAR-B's
        with pytest.raises(ValueError, match=f"mar_large has width 1024, not {width}"):
            MARConfig(size="mar_large", width=width)
    with pytest.raises(ValueError, match="mar_base, mar_efficient, mar_large, mar_huge, mar_digits"):
        MARConfig(size="mar_xxl")


@pytest.mark.parametrize("count", range(TOKENS))
def test_the_condition_does_not_see_unknown_latents(latents, count):
    model = make()
    known = torch.rand(4, TOKENS, generator=torch.Generator().manual_seed(2)).argsort(1)[:, :count]
    wanted = torch.arange(TOKENS).expand(4, -1)
    hidden = torch.full_like(latents, float("nan"))
    hidden.scatter_(1, known.unsqueeze(-1).expand(-1, -1, CHANNELS), gather_tokens(latents, known))
    cond = model.condition(latents, LABELS, known, wanted)
    assert torch.isfinite(cond).all()
    assert torch.equal(cond, model.condition(hidden, LABELS, known, wanted))


def test_the_condition_sees_every_known_latent_and_the_label(latents):
    model, wanted = make(), torch.arange(TOKENS).expand(4, -1)
    known = torch.tensor([[1, 4]]).expand(4, -1)
    cond = model.condition(latents, LABELS, known, wanted)
    for position in (1, 4):
        changed = latents.clone()
        changed[:, position] += 0.1
        assert (model.condition(changed, LABELS, known, wanted) - cond).abs().amin(1).amax() > 1e-6
    other = model.condition(latents, (LABELS + 1) % CLASSES, known, wanted)
    assert ((other - cond).abs().amax(2) > 1e-6).all()


def test_the_order_in_which_known_positions_are_given_does_not_matter(latents):
    model = make()
    known, wanted = torch.tensor([[5, 0, 2]]).expand(4, -1), torch.tensor([[4, 1, 3]]).expand(4, -1)
    cond = model.condition(latents, LABELS, known, wanted)
    torch.testing.assert_close(cond, model.condition(latents, LABELS, known.flip(1), wanted), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        cond.flip(1), model.condition(latents, LABELS, known, wanted.flip(1)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("count", [0, 2, 5])
def test_leaving_out_unread_positions_changes_neither_condition_nor_gradients(latents, count):
    model = make()
    order = torch.rand(4, TOKENS, generator=torch.Generator().manual_seed(2)).argsort(1)
    known, wanted = order[:, :count], order[:, count:]
    results = []
    for skip in (False, True):
        cond = model.condition(latents, LABELS, known, wanted, skip)
        gradients = torch.autograd.grad(cond.square().sum(), list(model.parameters()), allow_unused=True)
        results.append([cond, *(g for g in gradients if g is not None)])
    assert len(results[0]) == len(results[1]) > 20
    for plain, spared in zip(*results):
        torch.testing.assert_close(spared, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"mask_ratio_min": 0.2}, {"mask_ratio_min": 1.0}])
def test_a_training_step_that_leaves_out_unread_positions_has_the_plain_loss(latents, options):
    losses = [
        make(skip_unread=skip, **options).loss(latents, LABELS, StepRandom(0, 1)).item() for skip in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_block_at_some_positions_is_the_block_there():
    block, x = make().decoder[0], torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[3, 0], [6, 5]])
    torch.testing.assert_close(block_at(block, x, positions), gather_tokens(block(x), positions))


def test_tokens_beside_kept_keys_see_what_they_see_in_one_sequence_and_the_kept_ones_do_not_see_them():
    block, x = make().encoder[0], torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))
    first, past = block_with_past(block, x[:, :4], None)
    second, past = block_with_past(block, x[:, 4:6], past)
    third, past = block_with_past(block, x[:, 6:], past)
    torch.testing.assert_close(first, block(x[:, :4]))
    torch.testing.assert_close(second, block(x[:, :6])[:, 4:])
    torch.testing.assert_close(third, block(x)[:, 6:])
    assert past.keys.shape == past.values.shape == (2, 2, 7, 8)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize(
    "options",
    [{}, {"pairs_share_time": True}, {"mask_counts": 2}, {"times": TimeConfig("logit_normal", 0.5, 0.8)}],
    ids=str,
)
def test_the_loss_of_masked_tokens_is_that_of_all_tokens_with_the_others_left_out(latents, step, options):
    model = make(label_drop=0.0, mask_ratio_min=0.2, **options)
    random = StepRandom(0, step)
    latents.requires_grad_()
    loss = model.loss(latents, LABELS, random)

    count, times = masked_count(model.config, TOKENS, random), 1 if model.config.pairs_share_time else 3
    order = random.uniform("order", 4, TOKENS).argsort(1)
    noise, t = random.normal("noise", 4, 3, count, CHANNELS), random.times("t", 4, times, count)
    if model.config.pairs_share_time:
        first, second = random.normal("noise", 4, 2, count, CHANNELS).unbind(1)
        noise = torch.stack([first, second, -first], dim=1)
    if model.config.times.distribution == "logit_normal":
        t = torch.from_numpy(special.expit(0.5 + 0.8 * stats.norm.ppf(t.double().numpy()))).float()
    cond = model.condition(latents, LABELS, order[:, count:], torch.arange(TOKENS).expand(4, -1))
    terms = []
    for image in range(4):
        masked = order[image, :count].tolist()
        for pair in range(3):
            all_noise, all_t = torch.zeros(TOKENS, CHANNELS), torch.zeros(TOKENS)
            all_noise[masked], all_t[masked] = noise[image, pair], t[image, pair % times]
            point = (1 - all_t[:, None]) * all_noise + all_t[:, None] * latents[image]
            error = (model.head(point, all_t, cond[image]) - (latents[image] - all_noise)).square().mean(-1)  # (T,)
            terms.append(error[masked])
    slow = torch.cat(terms).mean()
    tight = model.config.times.distribution == "uniform"  # logit-normal times are another function's rounding
    torch.testing.assert_close(loss, slow, rtol=2e-6 if tight else 1e-5, atol=1e-5)
    parameters = dict(model.named_parameters())
    gradients, slow_gradients = (
        torch.autograd.grad(x, [latents, *parameters.values()], allow_unused=True, retain_graph=True)
        for x in (loss, slow)
    )
    for name, gradient, expected in zip(["latents", *parameters], gradients, slow_gradients):
        assert (gradient is None) == (expected is None), name
        if gradient is not None:
            torch.testing.assert_close(
                gradient,
                expected,
                rtol=1e-3,
                atol=1e-5 if tight else 1e-4,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_pairs_that_share_a_time_leave_the_expectation_of_loss_and_gradient_as_it_is(latents):
    """Over times and noise, with everything else the same: 2,400 draws of every image, at one mask after another."""
    plain, shared = (make(label_drop=0.0, mask_ratio_min=0.2, pairs_share_time=share) for share in (False, True))
    many, labels, differences, sizes = latents.repeat(100, 1, 1), LABELS.repeat(100), [], []
    for step in range(24):
        found = []
        for model in (plain, shared):
            model.zero_grad()
            loss = model.loss(many, labels, StepRandom(0, step))
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            found.append(torch.cat([loss.detach().view(1), gradient]))
        differences.append(found[1] - found[0])
        sizes.append(found[0])
    differences, mean = torch.stack(differences), torch.stack(sizes).mean(0)
    error = differences.std(0) / 24**0.5
    assert (differences.mean(0).abs() <= 6 * error + 1e-6).all()
    assert error[0] < 0.01 * mean[0] and error[1:].norm() < 0.1 * mean[1:].norm()


def class_rows_with_gradient(label_drop: float, latents: torch.Tensor) -> list[int]:
    model = make(label_drop=label_drop)
    model.loss(latents, LABELS, StepRandom(0, 0)).backward()
    return model.class_embed.weight.grad.abs().sum(1).nonzero()[:, 0].tolist()


def test_dropped_labels_become_the_null_class_and_no_others(latents):
    assert class_rows_with_gradient(0.0, latents) == [0, 3, 4]
    assert class_rows_with_gradient(1 - 1e-9, latents) == [CLASSES]


def test_labels_are_dropped_at_the_rate_that_is_asked_for():
    model = make(label_drop=0.3)
    seen = []
    model.condition = lambda latents, labels, known, wanted, _: seen.append(labels) or torch.zeros(*wanted.shape, 16)
    for step in range(40):
        model.loss(torch.zeros(100, TOKENS, CHANNELS), torch.full((100,), 2), StepRandom(0, step))
    dropped = torch.cat(seen) == CLASSES
    assert ((torch.cat(seen) == 2) | dropped).all()
    assert stats.binomtest(int(dropped.sum()), 4000, 0.3).pvalue > 1e-3


def test_every_position_is_masked_equally_often():
    model = make(mask_ratio_min=0.3, mask_ratio_std=0.5)
    seen = []
    model.condition = lambda latents, labels, known, wanted, _: seen.append(wanted) or torch.zeros(*wanted.shape, 16)
    for step in range(60):
        model.loss(torch.zeros(50, TOKENS, CHANNELS), torch.zeros(50, dtype=torch.long), StepRandom(1, step))
    counts = np.bincount(torch.cat([wanted.flatten() for wanted in seen]).numpy(), minlength=TOKENS)
    assert np.ptp(counts) < 0.06 * counts.mean()
    assert all(len(set(row.tolist())) == len(row) for wanted in seen for row in wanted)


def test_every_parameter_gets_a_gradient_within_a_few_steps(latents):
    model = make()
    torch.stack([model.loss(latents, LABELS, StepRandom(0, step)) for step in range(3)]).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_even_a_step_that_masks_every_token_leaves_no_parameter_without_a_gradient(latents):
    model = make(mask_ratio_min=1.0)
    model.loss(latents, LABELS, StepRandom(0, 0)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    "values",
    [
        {"width": 17, "heads": 2},
        {"label_drop": 1.0},
        {"dropout": -0.1},
        {"mask_ratio_min": 0.0},
        {"mask_ratio_std": 0.0},
    ],
)
def test_impossible_choices_are_refused(values):
    with pytest.raises(ValueError):
        MARConfig(**values)


def test_generators_are_built_by_name():
    config = build_config(GeneratorConfig, {"name": "mar", "mar": SMALL})
    model = build_generator(config, TOKENS, CHANNELS, CLASSES)
    assert isinstance(model, MAR) and (model.tokens, model.channels, model.num_classes) == (TOKENS, CHANNELS, CLASSES)
    with pytest.raises(Exception, match=", ".join(GENERATORS)):
        build_config(GeneratorConfig, {"name": "bogus"})
