"""What the expensive steps cost at the paper's sizes, counted by PyTorch on the meta device: no more than is written here, in GFLOP."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import PathDraw
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.time_grid import TimeGrid
from flowprior.flow.velocity import VelocityMLP
from mar.attention import gather_tokens
from mar.config import MARStageConfig
from mar.flow_map import FlowMap
from mar.guided import GuidedTransformer
from mar.head import FlowDrawer
from mar.model import MAR, MARConfig
from mar.sampler import sample_latents
from sit.model import SiTConfig
from sit.sampler import SamplerConfig as SiTSamplerConfig
from sit.sampler import sample_latents as sample_sit_latents

META = torch.device("meta")


def gflop(call) -> float:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def empty(*shape, dtype=torch.float32, **options):
    return torch.empty(shape, dtype=dtype, device=META, **options)


PRIOR, TOY = (32, 1024, 6), (2, 512, 4)


@pytest.mark.parametrize(
    "sizes, batch, pairs, group_size, most",
    [
        pytest.param(PRIOR, 512, 4, 1, 429, id="prior, a time per token"),
        pytest.param(PRIOR, 512, 4, 16, 173, id="prior, a time for 16"),
        pytest.param(TOY, 256, 1, 1, 9.4, id="toy, a time per token"),
        pytest.param(TOY, 256, 1, 8, 4.1, id="toy, a time for 8"),
        pytest.param(TOY, 256, 1, 16, 3.7, id="toy, a time for 16"),
    ],
)
def test_a_training_step_of_a_flow(sizes, batch, pairs, group_size, most):
    with META:
        velocity = VelocityMLP(*sizes)
    groups, channels = batch // group_size, sizes[0]
    data, noise = empty(groups, group_size, channels), empty(groups, pairs, group_size, channels)

    def step():
        t = empty(groups, pairs, 1)
        flow_matching_loss(velocity, data, PathDraw(noise, t)).backward()

    assert 0.95 * most < gflop(step) < most


def test_alignment_of_128_tokens_and_its_gradient_with_its_share_of_a_grid_renewed_every_100_steps():
    with META:
        prior = FlowPrior(VelocityMLP(32, 1024, 6), TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, 32)))
    latents, draw = empty(2, 64, 32, requires_grad=True), PathDraw(empty(2, 4, 64, 32), empty(2, 4, 64))

    def gradient(grid):
        return lambda: prior.alignment_loss(latents, draw, grid=grid).backward()

    anew, first, kept = (gflop(gradient(grid)) for grid in (None, TimeGrid(1024), TimeGrid(1024)))
    assert 48 < anew < 49
    assert 26 < kept + (first - kept) / 100 < 27


@pytest.mark.parametrize("skip_unread, times, most", [(False, 4, 1217), (True, 4, 1196), (True, 1, 1017)])
def test_a_training_step_of_mar_b_with_the_mean_number_of_masked_tokens(skip_unread, times, most):
    with META:
        model = MARConfig(skip_unread=skip_unread, pairs_share_time=times == 1).build(64, 32, 1000)
    masked = math.ceil(0.867 * 64)
    latents, labels, order = empty(8, 64, 32), empty(8, dtype=torch.long), empty(8, 64, dtype=torch.long)

    def step():
        cond = model.condition(latents, labels, order[:, masked:], order[:, :masked], skip_unread)
        data = gather_tokens(latents, order[:, :masked])
        draw = PathDraw(empty(8, 4, masked, 32), empty(8, times, masked))
        flow_matching_loss(model.head, data, draw, cond).backward()

    assert 0.99 * most < gflop(step) < most


@pytest.mark.parametrize("preset, evaluations, most", [("imagenet", 25, 1567), ("imagenet_efficient", 10, 671)])
def test_sampling_two_images_of_mar_b_with_guidance_in_8_steps(preset, evaluations, most):
    """The transformer with one evaluation of the head, and the others for all tokens at once; without ``share_first``, which looks at labels."""
    config = MARStageConfig.read("", ["--preset", preset]).model.mar
    assert config.sampler.head_evaluations in (0, evaluations)
    model = mar_b(config)
    sampler = replace(config.sampler, ar_steps=8, head_evaluations=1, share_first=False)
    once = gflop(lambda: sample_latents(model, empty(2, dtype=torch.long), [0, 1], 3.0, sampler))
    head = FlowDrawer(model.head, sampler).head
    again = gflop(lambda: head(empty(2, 64, 32), (0.5,), empty(4, 64, 1024)))
    assert 0.99 * most < once + (evaluations - 1) * again < most


TWO_PASSES = {"one_pass": False}
RARE, EVERY_SECOND = {"encoder_every": 4}, {"encoder_every": 2, "decoder_every": 2}


@pytest.mark.parametrize(
    "options, most",
    [
        pytest.param(TWO_PASSES | RARE | {"share_first": False}, 516, id="map"),
        pytest.param(TWO_PASSES | RARE | {"share_first": False, "head_evaluations": 1}, 507, id="map once"),
        pytest.param(TWO_PASSES | RARE, 503, id="map, share_first"),
        pytest.param(TWO_PASSES | EVERY_SECOND, 435, id="encodings and decodings every 2nd step"),
        pytest.param(TWO_PASSES | EVERY_SECOND | RARE, 382, id="encodings every 4th step"),
        pytest.param({}, 325, id="preset"),
        pytest.param(RARE, 268, id="one pass, encodings every 4th step"),
        pytest.param(EVERY_SECOND | RARE, 207, id="one pass, decodings as well"),
    ],
)
def test_sampling_two_images_of_mar_b_with_guidance_in_8_steps_by_the_heads_map(options, most, monkeypatch):
    """Two evaluations, which take the guidance scale as an input, but for one; two images of two classes share the first step's third pass."""
    config = MARStageConfig.read("", ["--preset", "imagenet_fast"]).model.mar
    model = mar_b(config)
    monkeypatch.setattr(torch.Tensor, "unique", lambda labels, return_inverse: (labels[: min(3, len(labels))], labels))
    sampler = replace(config.sampler, ar_steps=8, **options)
    assert 0.97 * most < gflop(lambda: sample_latents(model, empty(2, dtype=torch.long), [0, 1], 3.0, sampler)) < most


def mar_b(config: MARConfig) -> MAR:
    with META:
        model = config.build(64, 32, 1000)
        model.flow_map = FlowMap(model.head, (1.0, 4.0))
        model.guided = GuidedTransformer(model, model.flow_map, (1.0, 4.0))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("size, billions", [("S", 6.06), ("B", 23.01), ("L", 80.71), ("XL", 118.64)])
def test_a_forward_pass_of_sit_takes_the_published_multiplications_and_additions(size, billions):
    """Of DiT (arXiv 2212.09748), whose blocks and sizes SiT has, at 256 tokens; it counts one multiplication and its addition as one."""
    with META:
        model = SiTConfig(size=size).build(256, 16, 1000)
    forward = gflop(lambda: model(empty(1, 256, 16), empty(1), empty(1, dtype=torch.long)))
    assert forward / 2 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize("size, block, most", [("B", "plain", 268), ("B", "lightning", 268), ("XL", "plain", 1400)])
def test_a_training_step_of_sit_on_8_images_of_64_tokens(size, block, most):
    with META:
        model = SiTConfig(size=size, block=block).build(64, 32, 1000)
    step = gflop(lambda: model(empty(8, 64, 32), empty(8), empty(8, dtype=torch.long)).square().mean().backward())
    assert 0.99 * most < step < most


@pytest.mark.parametrize(
    "options, most", [({}, 1866), ({"cfg_interval": (0.0, 0.75)}, 1750), ({"solver": "sde", "steps": 8}, 1866)]
)
def test_sampling_two_images_of_sit_xl_with_guidance_in_8_evaluations(options, most):
    with META:
        model = SiTConfig(size="XL").build(64, 32, 1000).eval().requires_grad_(False)
    config = SiTSamplerConfig(**{"steps": 4, **options})
    drawn = gflop(lambda: sample_sit_latents(model, empty(2, dtype=torch.long), [0, 1], 1.5, config))
    assert 0.99 * most < drawn < most
