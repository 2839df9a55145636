from dataclasses import replace

import pytest
import torch

from flowprior.training.randomness import StepRandom
from flows import CHANNELS, CLASSES, TOKENS, latents_and_labels, shake
from simflow.model import SamplerConfig, TarFlow, TarFlowConfig

SMALL = dict(width=16, depths=(1, 1), heads=2)


def make(**options) -> TarFlow:
    return shake(TarFlowConfig(**SMALL | options).build(TOKENS, CHANNELS, CLASSES), 0.25)


def with_sampler(model: TarFlow, **options) -> TarFlow:
    model.config = replace(model.config, sampler=SamplerConfig(**options))
    return model


def test_the_loss_is_the_negative_log_likelihood_per_dimension():
    model, (latents, labels) = make(label_drop=0.0), latents_and_labels()
    expected = -model.flow.log_prob(latents, labels).mean() / (TOKENS * CHANNELS)
    torch.testing.assert_close(model.loss(latents, labels, StepRandom(0, 0)), expected)


def test_the_loss_is_of_latents_with_noise_of_the_stated_std():
    model, (latents, labels) = make(label_drop=0.0, noise_std=0.3), latents_and_labels(4000)
    seen = []
    model.flow.log_prob = lambda x, labels: seen.append(x) or x.sum((1, 2))
    model.loss(latents, labels, StepRandom(0, 0))
    noise = seen[0] - latents
    assert noise.std() == pytest.approx(0.3, rel=0.02) and abs(noise.mean()) < 0.01


def test_the_stated_share_of_labels_is_dropped():
    model, (latents, labels) = make(label_drop=0.2), latents_and_labels(4000)
    seen = []
    model.flow.log_prob = lambda x, labels: seen.append(labels) or x.sum((1, 2))
    model.loss(latents, labels % CLASSES, StepRandom(0, 0))
    changed = seen[0] != labels % CLASSES
    assert (seen[0][changed] == CLASSES).all()
    assert changed.float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_noise_and_dropped_labels_depend_on_a_samples_place_in_the_global_batch_alone():
    model, (latents, labels) = make(label_drop=0.5, noise_std=0.5), latents_and_labels(8)
    whole = model.loss(latents, labels, StepRandom(0, 3))
    halves = [model.loss(latents[4 * i : 4 * i + 4], labels[4 * i : 4 * i + 4], StepRandom(0, 3, i, 2)) for i in (0, 1)]
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.mark.parametrize("cfg", [1.0, 2.5])
@pytest.mark.parametrize("noise_std", [0.0, 0.4])
def test_a_sample_depends_on_its_own_label_and_seed_only(cfg, noise_std):
    model, labels, seeds = make(noise_std=noise_std), torch.tensor([0, 3, 2, 1, 0]), [5, 6, 7, 8, 9]
    together = model.sample(labels, seeds, cfg)
    for i in (0, 2, 4):
        alone = model.sample(labels[i : i + 1], [seeds[i]], cfg)
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)
    other = model.sample(torch.tensor([1, 3, 2, 1, 0]), [5, 60, 7, 8, 9], cfg)
    changed = (other - together).abs().amax((1, 2)) > 1e-3
    assert changed.tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("guidance", ["starflow", "tarflow", "mean"])
def test_guidance_one_is_none_and_another_changes_samples(guidance):
    model, labels, seeds = with_sampler(make(), guidance=guidance), torch.tensor([0, 3]), [1, 2]
    plain, near, strong = (model.sample(labels, seeds, cfg) for cfg in (1, 1 + 1e-6, 3))
    torch.testing.assert_close(plain, near, rtol=1e-3, atol=1e-4)
    assert (strong - plain).abs().max() > 1e-2


def test_the_temperature_scales_the_noise():
    model, labels = make(), torch.tensor([1, 2])
    cold = with_sampler(model, temperature=0.5).sample(labels, [1, 2], 1)
    noise = torch.stack([torch.randn(TOKENS, CHANNELS, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    with torch.no_grad():
        torch.testing.assert_close(cold, model.flow.inverse(0.5 * noise, labels))


def test_samples_are_denoised_where_noise_was_added_and_nothing_says_otherwise():
    for noise_std, denoise in ((0.4, True), (0.4, False), (0.0, True)):
        model, labels = with_sampler(make(noise_std=noise_std), denoise=denoise), torch.tensor([1, 2])
        raw = with_sampler(make(noise_std=noise_std), denoise=False).sample(labels, [1, 2], 1)
        wanted = model.flow.denoised(raw, labels, noise_std) if noise_std and denoise else raw
        assert torch.equal(model.sample(labels, [1, 2], 1), wanted)
        assert not wanted.requires_grad


def test_computing_layers_again_changes_no_gradient_and_keeps_fewer_activations():
    gradients, kept = [], []
    for again in (False, True):
        model, (latents, labels) = make(dropout=0.1, checkpoint_layers=again).train(), latents_and_labels()
        torch.manual_seed(0)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.nbytes) or t, lambda t: t):
            loss = model.loss(latents, labels, StepRandom(0, 0))
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
        kept.append(sum(sizes))
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
    assert kept[1] < 0.6 * kept[0]


def test_the_configs_refuse_what_cannot_be():
    for options, said in [
        (dict(width=10, heads=4), "does not divide into 4 heads"),
        (dict(depths=()), "a number for each block"),
        (dict(depths=(2, 0)), "at least 1"),
        (dict(label_drop=1.0), "label_drop"),
        (dict(noise_std=-0.1), "noise_std"),
    ]:
        with pytest.raises(ValueError, match=said):
            TarFlowConfig(**options)
    with pytest.raises(ValueError, match="temperature"):
        SamplerConfig(temperature=0)
