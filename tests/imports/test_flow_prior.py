"""The paper's flow priors, in the format that they come in."""

import math

import pytest
import torch

from flowprior.errors import UserError
from flowprior.flow.path import PathDraw
from flowprior.flow.prior import FlowPrior
from imports.__main__ import import_weights, parse
from imports.checkpoint import read_checkpoint
from imports.flow_head import _change_of_features, _features
from published_flow import PublishedFlow, matching_loss

CHANNELS, WIDTH, DEPTH = 5, 32, 2


@pytest.fixture(scope="module")
def theirs() -> PublishedFlow:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PublishedFlow(CHANNELS, WIDTH, DEPTH)


@pytest.fixture
def imported(theirs, tmp_path):
    """A function from changes to the checkpoint and words to the prior that is read from the folder."""

    def make(*words, change=lambda state: state, **beside) -> FlowPrior:
        state = {f"flow_loss.net.{name}": value.detach().clone() for name, value in theirs.state_dict().items()}
        ddp = {f"module.{name}": torch.zeros_like(value) for name, value in state.items()}
        torch.save({"model": ddp, "ema": change(state), "optimizer": {"state": {}}, **beside}, tmp_path / "flow.pt")
        source, out, config = parse([str(tmp_path / "flow.pt"), "--out", str(tmp_path / "prior"), *words])
        import_weights(read_checkpoint(source, config.set), config, out)
        return FlowPrior.load(out)

    return make


def test_the_features_of_their_time_lie_in_the_span_of_ours():
    t = torch.rand(999, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert (_features(1000 * t) @ _change_of_features() - _features(1 - t)).abs().max() < 1e-10


@torch.no_grad()
def test_an_imported_prior_has_the_published_velocity_and_loss(theirs, imported):
    prior, draw = imported(), torch.Generator().manual_seed(1)
    data, noise = (torch.randn(400, CHANNELS, generator=draw) for _ in range(2))
    t = torch.rand(400, generator=draw)
    expected = -theirs(data, 1 - t)
    assert expected.std() > 0.1
    torch.testing.assert_close(prior.velocity(data, t), expected, rtol=1e-4, atol=2e-5)
    drawn = PathDraw(noise.unsqueeze(0), t.unsqueeze(0))
    ours = prior.alignment_loss(data, drawn)
    torch.testing.assert_close(ours, matching_loss(theirs, data, noise, 1 - t), rtol=1e-5, atol=1e-6)


def test_raw_features_are_scaled_and_projected_as_published(imported):
    features = torch.randn(7, 12, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(42)
    matrix = torch.empty(CHANNELS, 12).normal_(std=12**-0.5)
    prior = imported("features=12", "scale=64.0511")
    torch.testing.assert_close(prior.project(features), 64.0511 * features @ matrix.T, rtol=1e-5, atol=1e-6)


def test_the_scale_is_the_one_beside_the_weights_and_projected_features_stay_as_they_are(imported, capfd):
    projected = torch.randn(7, CHANNELS, generator=torch.Generator().manual_seed(2))
    prior = imported(args={"vae_scaling_factor": 0.5})
    torch.testing.assert_close(prior.project(projected), 0.5 * projected)
    assert "multiplies them by 0.5" in capfd.readouterr().err


@pytest.mark.parametrize("value", [torch.tensor(64.05), torch.tensor([64.05], dtype=torch.float64)])
def test_a_scale_that_is_a_tensor_of_one_element_is_taken(imported, value):
    projected = torch.randn(7, CHANNELS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(imported(vae_scaling_factor=value).project(projected), 64.05 * projected)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, torch.tensor(0.0)])
def test_a_scale_that_is_no_finite_number_above_0_is_refused(imported, tmp_path, value):
    with pytest.raises(UserError, match="vae_scaling_factor in .* is a finite number above 0") as caught:
        imported(vae_scaling_factor=value)
    assert "\n" not in str(caught.value) and not (tmp_path / "prior").exists()
    with pytest.raises(UserError, match="^scale= is a finite number above 0, not inf"):
        imported("scale=.inf")


def test_the_bounds_of_the_projections_seed_are_those_of_a_generator(imported):
    imported("features=6", f"projection_seed={2**63 - 1}")
    for seed in (2**70, -(2**70)):
        with pytest.raises(UserError, match="projection_seed is at"):
            imported("features=6", f"projection_seed={seed}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s | {"flow_loss.net.extra": torch.zeros(1)}, "has flow_loss.net.extra beside"),
        (lambda s: s | {"projector.weight": torch.zeros(1)}, "has projector.weight beside"),
        (
            lambda s: {k: v for k, v in s.items() if "in_ln.bias" not in k},
            "it lacks flow_loss.net.res_blocks.0.in_ln.bias",
        ),
        (lambda s: s | {"flow_loss.net.time_embed.mlp.0.weight": torch.zeros(WIDTH, 8)}, "mlp.0.weight is"),
        (lambda s: {k: v for k, v in s.items() if "input_proj" not in k}, "it lacks flow_loss.net.input_proj.weight"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(imported, change, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        imported(change=change)
    assert "\n" not in str(caught.value) and not (tmp_path / "prior").exists()


def test_a_projections_seed_without_a_projection_and_an_autoencoders_options_are_refused(imported):
    for word, told in (
        ("projection_seed=3", "goes with features="),
        ("encoder=vit_tiny_patch16_224", "leave out encoder="),
    ):
        with pytest.raises(UserError, match=told):
            imported(word)
