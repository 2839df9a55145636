import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows import latents_and_labels, random_flow
from simflow.guidance import Affine, Guidance

numbers = st.floats(-2, 2)
scales = st.floats(-1, 1)
KINDS = ["starflow", "tarflow", "mean"]


def affine(mean, log_scale):
    return Affine(*(torch.tensor([[[value]]], dtype=torch.float64) for value in (mean, log_scale)))


@pytest.mark.parametrize("kind", KINDS)
@given(a=numbers, b=scales, c=numbers, d=scales)
def test_a_scale_of_one_leaves_the_conditional_as_it_is(kind, a, b, c, d):
    found = Guidance(kind, 1.0)(affine(a, b), affine(c, d))
    torch.testing.assert_close(found, affine(a, b))


@pytest.mark.parametrize("kind", ["starflow", "tarflow"])
@given(a=numbers, b=scales, c=numbers, d=scales)
def test_a_scale_of_zero_is_the_unconditional(kind, a, b, c, d):
    torch.testing.assert_close(Guidance(kind, 0.0)(affine(a, b), affine(c, d)), affine(c, d))


@given(st.floats(0, 4), numbers, scales, numbers, st.floats(0, 1))
def test_starflows_is_the_tilted_gaussian_where_that_exists(scale, mean, log_scale, other, wider):
    """Compared with log p_c^(1 + w) / p_u^w at three points, up to the constant that makes it a density."""
    conditional, unconditional = affine(mean, log_scale), affine(other, log_scale + wider)
    guided = Guidance("starflow", scale)(conditional, unconditional)
    points = torch.tensor([-1.5, 0.2, 2.0], dtype=torch.float64)

    def log_density(affine):
        return torch.distributions.Normal(affine.mean.squeeze(), affine.log_scale.exp().squeeze()).log_prob(
            points
        )  # in float64

    wanted = scale * log_density(conditional) + (1 - scale) * log_density(unconditional)
    torch.testing.assert_close(log_density(guided).diff(), wanted.diff(), rtol=1e-6, atol=1e-6)


@given(st.floats(1, 9), numbers, scales, numbers, st.floats(0, 1))
def test_starflows_is_the_means_where_the_conditional_is_the_wider(scale, mean, log_scale, other, narrower):
    conditional, unconditional = affine(mean, log_scale), affine(other, log_scale - narrower)
    found = [Guidance(kind, scale)(conditional, unconditional) for kind in ("starflow", "mean")]
    torch.testing.assert_close(*found)


def test_tarflows_moves_mean_and_log_scale_along_a_line():
    found = Guidance("tarflow", 3.0)(affine(1.0, 0.5), affine(0.5, 0.25))
    torch.testing.assert_close(found, affine(2.0, 1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_of_one_block_is_that_of_its_gaussians(kind):
    """The plain way computes both sets of parameters anew for every token."""
    flow = random_flow(depths=(1,), dtype=torch.float64)
    [block], guidance = flow.blocks, Guidance(kind, 2.5)
    noise, labels = latents_and_labels(dtype=torch.float64)
    dropped, x = torch.full_like(labels, flow.num_classes), torch.zeros_like(noise)
    with torch.no_grad():
        for i in range(noise.shape[1]):
            mean, log_scale = guidance(block.affine(x, labels), block.affine(x, dropped))
            x[:, i] = noise[:, i] * log_scale[:, i].exp() + mean[:, i]
        torch.testing.assert_close(flow.inverse(noise, labels, guidance), x)


def test_blocks_that_see_no_class_are_not_guided():
    flow = random_flow(conditioned="last", dtype=torch.float64)
    noise, labels = latents_and_labels(dtype=torch.float64)
    guidance = Guidance("starflow", 3.0)
    with torch.no_grad():
        x = flow.blocks[2].inverse(noise, labels, guidance)
        for block in (flow.blocks[1], flow.blocks[0]):
            x = block.inverse(x)
        assert torch.equal(flow.inverse(noise, labels, guidance), x)
        assert not torch.allclose(x, flow.inverse(noise, labels))


def test_samples_stay_finite_under_strong_guidance():
    flow = random_flow(0.5)
    noise, labels = latents_and_labels(64)
    for scale in (0.0, 4.0, 20.0):
        with torch.no_grad():
            assert flow.inverse(noise, labels, Guidance("starflow", scale)).isfinite().all()
