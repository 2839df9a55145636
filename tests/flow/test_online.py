"""The latents' own flow: what it starts from, what it learns, and that it can be stopped and shared."""

import io
import math

import pytest
import torch

from flowprior import OnlineFlow, OnlineFlowConfig, VelocityMLP
from flowprior.errors import NonFiniteLoss
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.online import OnlineOptimConfig
from flowprior.flow.path import draw_path
from flowprior.run.config import build_config
from networks import random_prior

SCOPES = ["token", "sequence"]


def make(scope="token", prior=None, **options) -> OnlineFlow:
    config = build_config(OnlineFlowConfig, {"scope": scope, "group_size": 2, **options})
    return OnlineFlow(prior or random_prior(), config, tokens=4)


def latents(seed: int) -> torch.Tensor:
    return 0.5 * torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(seed)) + 1


def train(online: OnlineFlow, prior, steps: range) -> list[torch.Tensor]:
    """Latents that follow the divergence's gradient, and the flow that follows them."""
    y, losses = latents(0), []
    for step in steps:
        y = (y + 0.1 * latents(step)).requires_grad_()
        generator = torch.Generator().manual_seed(step)
        loss = prior.alignment_loss(y, objective="distribution", online=online, generator=generator)
        (gradient,) = torch.autograd.grad(loss, y)
        losses += [loss.detach(), gradient, *online.update(y).values()]
    return losses


@pytest.mark.parametrize("scope", SCOPES)
def test_it_starts_as_the_prior_and_so_exerts_no_force(scope, generator):
    prior = random_prior()
    online, y = make(scope, prior), latents(0).requires_grad_()
    x, t = torch.randn(5, 1, 4, 3, generator=generator), torch.rand(5, 1, 1, generator=generator)
    torch.testing.assert_close(online(x, t), prior.velocity(x, t))
    prior.alignment_loss(y, objective="distribution", online=online, generator=generator).backward()
    assert y.grad.abs().max() < 1e-6
    online.update(y)
    assert not torch.allclose(online(x, t), prior.velocity(x, t), atol=1e-5)


@pytest.mark.parametrize("scope", SCOPES)
def test_training_it_leaves_the_prior_as_it_was(scope):
    prior = random_prior()
    before, online = prior.fingerprint, make(scope, prior)
    train(online, prior, range(3))
    assert prior.fingerprint == before and not any(p.requires_grad for p in prior.parameters())


def test_it_learns_the_velocity_of_latents_that_stand_still():
    network = VelocityMLP(1, 32, 2, generator=torch.Generator().manual_seed(0))
    optim = OnlineOptimConfig(lr=3e-3, ema_decay=0.98)
    online, generator = OnlineFlow(network, OnlineFlowConfig(optim=optim)), torch.Generator().manual_seed(0)
    for _ in range(400):
        online.update(2 + 0.5 * torch.randn(64, 8, 1, generator=generator))
    data = 2 + 0.5 * torch.randn(20_000, 1, generator=generator)
    loss = flow_matching_loss(online, data, draw_path(data, generator=generator))
    assert loss.item() == pytest.approx(0.5 * math.pi / 2, rel=0.05)  # the exact velocity's, see test_losses


def test_its_lag_is_positive_while_latents_run_away_and_negative_once_they_have_come_back():
    prior = random_prior(channels=1)
    online, generator = OnlineFlow(prior, OnlineFlowConfig(optim=OnlineOptimConfig(lr=3e-3))), torch.Generator()
    lags = []
    for step in range(60):
        centre = float(step) / 4 if step < 40 else 0.0
        y = (centre + 0.3 * torch.randn(200, 8, 1, generator=generator)).requires_grad_()
        prior.alignment_loss(y, objective="distribution", online=online, pairs=2, generator=generator)
        lags.append(online.update(y)["online_lag"].item())
    assert lags[0] == 0 and lags[39] > 0.1 and min(lags[40:]) < -0.1


MUON = pytest.param(
    {"optim": {"name": "muon"}},
    marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch 2.9 brings Muon"),
)


@pytest.mark.parametrize("options", [{}, {"steps": 3}, {"optim": {"ema_decay": 0}}, {"pairs": 2, "weight": "kl"}, MUON])
@pytest.mark.parametrize("scope", SCOPES)
def test_a_resumed_run_has_the_same_bits_as_the_uninterrupted_one(scope, options):
    prior = random_prior()
    whole, first, second = (make(scope, prior, **options) for _ in range(3))
    expected = train(whole, prior, range(5))[-4:]
    train(first, prior, range(4))
    kept = io.BytesIO()
    torch.save(first.state_dict(), kept)
    kept.seek(0)
    second.load_state_dict(torch.load(kept, weights_only=True))
    y = latents(0)
    for step in range(4):
        y = y + 0.1 * latents(step)
    y = (y + 0.1 * latents(4)).requires_grad_()
    loss = prior.alignment_loss(y, objective="distribution", online=second, generator=torch.Generator().manual_seed(4))
    found = [loss.detach(), torch.autograd.grad(loss, y)[0], *second.update(y).values()]
    assert all(torch.equal(a, b) for a, b in zip(expected, found))
    weights = second.velocity.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.velocity.state_dict().items())


@pytest.mark.parametrize("entry", ["own", "updates", "power", "ema"])
def test_every_entry_of_its_state_is_needed(entry):
    prior = random_prior()
    online = make(prior=prior)
    train(online, prior, range(2))
    state = online.state_dict()
    del state[entry]
    with pytest.raises(KeyError):
        make(prior=prior).load_state_dict(state)


def test_gradient_accumulation_changes_no_draw():
    prior, y = random_prior(), latents(0)
    whole, parts = OnlineFlow(prior), OnlineFlow(prior, micro_batches=3)
    for online in (whole, parts):
        online.update(y)
    weights = parts.velocity.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.velocity.state_dict().items())


def test_latents_may_come_as_single_tokens_or_in_more_dimensions():
    prior, y = random_prior(), latents(0)
    for shaped in (y.view(24, 3), y.view(2, 3, 4, 3)):
        assert torch.isfinite(OnlineFlow(prior).update(shaped)["online_loss"])


def test_a_flow_of_sequences_knows_how_the_tokens_go_together_which_one_of_tokens_does_not():
    prior, generator = random_prior(channels=1), torch.Generator().manual_seed(0)
    losses = {}
    for scope in SCOPES:
        config = build_config(OnlineFlowConfig, {"scope": scope, "optim": {"lr": 3e-3}})
        online = OnlineFlow(prior, config, tokens=2)
        for _ in range(300):
            one = torch.randn(128, 1, 1, generator=generator)
            losses[scope] = online.update(one.expand(128, 2, 1))["online_loss"].item()
    assert losses["sequence"] < 0.9 * losses["token"]


def test_the_path_that_counts_grows_with_the_updates_and_comes_back_with_the_state():
    prior, y = random_prior(), latents(0)
    online = make(prior=prior, t_first=0.5, t_max=0.9, t_growth_updates=4)
    ends = []
    for _ in range(6):
        ends.append(online.t_max)
        online.update(y)
    assert ends == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    again = make(prior=prior, t_first=0.5, t_max=0.9, t_growth_updates=12)
    again.load_state_dict(online.state_dict())
    assert again.t_max == pytest.approx(0.7) and make(prior=prior).t_max == 0.98


def test_sequences_of_another_length_are_refused():
    with pytest.raises(ValueError, match="tokens="):
        OnlineFlow(random_prior(), OnlineFlowConfig(scope="sequence"))
    with pytest.raises(ValueError, match="sequences of 4 tokens, not of 5"):
        make("sequence").update(torch.zeros(2, 5, 3))


def test_latents_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="over 3 channels, the latents have 4"):
        make().update(torch.zeros(6, 4, 4))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_update_where_gradients_are_off_is_the_same(mode):
    online, prior = make(), random_prior()
    online.update(latents(0))
    with mode():
        other = make(prior=prior)
        other.update(latents(0))
    for one, two in zip(online.velocity.parameters(), other.velocity.parameters()):
        assert torch.equal(one, two)


def test_latents_that_are_not_finite_change_nothing():
    online = make()
    before = {name: value.clone() for name, value in online.velocity.state_dict().items()}
    with pytest.raises(NonFiniteLoss):
        online.update(torch.full((2, 4, 3), math.inf))
    assert all(torch.equal(value, before[name]) for name, value in online.velocity.state_dict().items())


@pytest.mark.parametrize(
    "values",
    [
        {"t_max": 1},
        {"t_first": 1},
        {"t_growth_updates": -1},
        {"t_max": 0},
        {"steps": 0},
        {"pairs": 0},
        {"weight": "dmd"},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values):
    with pytest.raises(Exception, match="t_max|t_first|t_growth|at least 1|weight"):
        build_config(OnlineFlowConfig, values)


def test_a_loss_that_is_not_finite_leaves_nothing_in_the_lag():
    prior = random_prior(3)
    online = OnlineFlow(prior)
    latents = torch.randn(4, 3, prior.channels)
    assert not prior.alignment_loss(latents * float("nan"), objective="distribution", online=online).isfinite()
    prior.alignment_loss(latents, objective="distribution", online=online)
    assert online.update(latents)["online_lag"].isfinite()
