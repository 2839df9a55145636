"""Training that opens with the paper's alignment and hands over to the distribution objective."""

import pytest
import torch

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.flow.losses import alignment_loss
from flowprior.flow.path import draw_path_of_step
from flowprior.run.config import build_config
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom
from networks import random_prior
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, Encoded, ViTConfig
from tokenizer.objective import AutoencoderObjective, LossConfig
from tokenizer.regularisers.base import RegulariserContext
from tokenizer.regularisers.flow import FlowConfig, FlowRegulariser

TOKENS, CHANNELS = 6, 4
START, CROSSING, OPENING, WEIGHT = 3, 4, 0.3, 0.7
HANDOVER = {"objective": "distribution", "weight": WEIGHT, "start_step": START, "ramp_steps": CROSSING}
HANDOVER |= {"opening_weight": OPENING, "group_size": 2}
SHARES = {0: 0, 2: 0, 3: 0.25, 4: 0.5, 5: 0.75, 6: 1, 20: 1}  # of the distribution objective, by step


def regulariser(**options) -> FlowRegulariser:
    context = RegulariserContext(random_prior(CHANNELS), AutoencoderConfig(16, 8, TOKENS, CHANNELS), 10, 0, World())
    return build_config(FlowConfig, HANDOVER | options).build(context)


def objective(**options) -> AutoencoderObjective:
    torch.manual_seed(0)
    vit = ViTConfig(width=24, depth=1, heads=3)
    model = Autoencoder(AutoencoderConfig(16, 8, TOKENS, CHANNELS, False, vit, vit))
    return AutoencoderObjective(model, [regulariser(**options)], LossConfig())


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)}


def trained(steps: int, **options) -> tuple[AutoencoderObjective, list[dict[str, torch.Tensor]]]:
    """After so many real steps, and what the log would have of each."""
    made, logged = objective(**options), []
    config = TrainConfig(steps=steps, global_batch=4)
    loop = TrainingLoop(made, made.autoencoder, config, OptimConfig(lr=0.01), World(), progress=False)
    for _ in range(steps):
        logged.append(loop.train_step(iter([batch()])).terms)
        loop.step += 1
    return made, logged


@pytest.mark.parametrize("step, share", SHARES.items())
def test_gradients_are_the_weighted_sum_of_both_terms_computed_by_hand(step, share):
    flow, random = regulariser(), StepRandom(0, step)
    latents = torch.randn(4, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for _ in range(3):  # an online flow that is not the prior any more
        flow.train_auxiliary(latents + 1, step)
    terms = flow.terms(Encoded(latents, None, None, None), {}, random)
    [gradient] = torch.autograd.grad(sum(weight * term for term, weight in terms.values()), latents)

    draw = draw_path_of_step(random, latents, pairs=4, group_size=2, name="alignment")
    likelihood = alignment_loss(flow.prior.velocity, latents, draw)
    distribution = flow.online.loss(flow.prior.velocity, latents, draw)
    by_hand = [torch.autograd.grad(term, latents)[0] for term in (likelihood, distribution)]
    assert all(part.abs().max() > 1e-4 for part in by_hand)
    torch.testing.assert_close(gradient, (1 - share) * OPENING * by_hand[0] + share * WEIGHT * by_hand[1])
    assert set(terms) == ({"flow", "flow_opening"} if share < 1 else {"flow"})


def test_until_the_handover_begins_training_is_bit_for_bit_that_of_the_likelihood_and_afterwards_it_is_not():
    plain = {"objective": "likelihood", "opening_weight": 0, "start_step": 0, "ramp_steps": 0, "weight": OPENING}
    for steps, alike in ((START, True), (START + 1, False)):
        handed, paper = (trained(steps, **options)[0].autoencoder.state_dict() for options in ({}, plain))
        assert all(torch.equal(handed[name], paper[name]) for name in paper) == alike


def test_the_online_flow_learns_from_the_first_step_on_and_the_log_has_both_terms_until_the_handover_is_over():
    made, logged = trained(8)
    [flow] = made.regularisers
    assert flow.online.updates == 8
    assert all("online_loss" in row and "flow" in row for row in logged)
    shown = [row["weighted/flow_opening"] / row["flow_opening"] for row in logged if "flow_opening" in row]
    assert shown == pytest.approx([OPENING * (1 - SHARES.get(step, 0)) for step in range(START + CROSSING - 1)])


def test_a_handover_at_once_is_one_step_after_the_other_without_both():
    flow = regulariser(ramp_steps=0)
    latents = torch.randn(2, TOKENS, CHANNELS)
    terms = [flow.terms(Encoded(latents, None, None, None), {}, StepRandom(0, step)) for step in (START - 1, START)]
    assert [{name: weight for name, (_, weight) in each.items()} for each in terms] == [
        {"flow_opening": OPENING, "flow": 0},
        {"flow": WEIGHT},
    ]


def test_without_an_opening_the_term_stands_alone_from_the_first_step_on():
    flow = regulariser(opening_weight=0)
    latents = torch.randn(2, TOKENS, CHANNELS)
    assert list(flow.terms(Encoded(latents, None, None, None), {}, StepRandom(0, 0))) == ["flow"]
    assert "opening_weight" not in flow.describe() and regulariser().describe()["opening_weight"] == OPENING


@pytest.mark.parametrize(
    "mistake, said",
    [
        ({"objective": "likelihood"}, "hands over to another: write regulariser.flow.objective=distribution"),
        ({"start_step": 0, "ramp_steps": 0}, "counts in no step.* write regulariser.flow.start_step="),
        ({"start_step": 0, "ramp_steps": 1}, "counts in no step"),
        ({"opening_weight": -0.1}, "opening_weight"),
    ],
)
def test_an_opening_that_means_nothing_is_one_line(mistake, said):
    with pytest.raises(UserError, match=said) as error:
        build_config(FlowConfig, HANDOVER | mistake, "regulariser.flow")
    assert "\n" not in str(error.value)
