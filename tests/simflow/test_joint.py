"""The autoencoder and the flow that are trained together: the objective, and what its mistakes are answered with."""

import pytest
import torch

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.config import build_config
from flowprior.training.loop import TrainingLoop
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom
from simflow.config import JOINT_PRESETS
from simflow.train_simflow import SimFlowAEConfig
from tokenizer.autoencoder import AutoencoderConfig, Encoded
from tokenizer.config import PRESETS, AEConfig, find_ae_preset
from tokenizer.dry_run import step_cost
from tokenizer.regularisers.base import RegulariserContext
from tokenizer.train_ae import build_objective, dry_run

SMALL = {
    "data": {"source": "digits", "size": 16},
    "model": {
        "image_size": 16,
        "patch_size": 8,
        "tokens": 3,
        "channels": 4,
        "encoder": {"width": 12, "depth": 1, "heads": 3},
        "decoder": {"width": 12, "depth": 1, "heads": 3},
    },
    "features": {"source": "digits", "digits": {"width": 8, "steps": 2}},
    "train": {"steps": 4, "global_batch": 8, "log_steps": 1},
}
FLOW = {"width": 12, "heads": 2, "depths": [1, 1], "label_drop": 0.0}


def config(name: str = "simflow", model: dict | None = None, **simflow) -> SimFlowAEConfig:
    regulariser = {"name": name, "simflow": {"flow": FLOW, **simflow}}
    return build_config(SimFlowAEConfig, SMALL | {"model": SMALL["model"] | (model or {}), "regulariser": regulariser})


@pytest.fixture
def objective(tmp_path):
    made = build_objective(config(weight=0.1), tmp_path, World(), 10, None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():  # a fresh flow is the identity
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return {"image": images, "label": torch.arange(8)}


def test_latents_are_the_mean_in_use_and_have_noise_of_the_fixed_std_in_training(objective):
    autoencoder, images = objective.autoencoder, torch.zeros(64, 3, 16, 16)
    noise = torch.randn(64, 3, 4)
    encoded = autoencoder.posterior(images, noise)
    torch.testing.assert_close(encoded.latents, autoencoder.encode(images) + 0.5 * noise)
    assert encoded.code.shape == (64, 3, 4) and encoded.logvar is None


def test_the_loss_is_the_reconstruction_of_drawn_latents_and_their_weighted_negative_log_likelihood(objective, batch):
    random = StepRandom(0, 2)
    output = objective(batch, random)
    images = batch["image"].float() / 127.5 - 1
    latents = objective.autoencoder.encode(images) + 0.5 * random.normal("posterior", 8, 3, 4)
    flow = objective.regularisers[0].generator.flow
    nats = -flow.log_prob(latents, batch["label"]).mean() / 12
    pixels = (objective.autoencoder.decode(latents) - images).square().mean()
    torch.testing.assert_close(output.terms["simflow"], nats)
    torch.testing.assert_close(output.loss, pixels + 0.1 * nats)


def test_the_loss_of_a_learned_variance_is_the_divergence_of_the_drawn_latents_posterior_from_the_flow(tmp_path, batch):
    objective = build_objective(config(weight=0.1, variance="learned"), tmp_path, World(), 10, None)
    random, images = StepRandom(0, 2), batch["image"].float() / 127.5 - 1
    output = objective(batch, random)
    mean, logvar = objective.autoencoder.encoder(images).chunk(2, dim=-1)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    latents = mean + posterior.scale * random.normal("posterior", 8, 3, 4)
    flow = objective.regularisers[0].generator.flow
    nats = (-posterior.entropy().sum((1, 2)) - flow.log_prob(latents, batch["label"])).mean() / 12
    pixels = (objective.autoencoder.decode(latents) - images).square().mean()
    torch.testing.assert_close(output.terms["simflow"], nats)
    torch.testing.assert_close(output.loss, pixels + 0.1 * nats)


def test_a_learned_posterior_without_images_to_tell_apart_becomes_the_flows_prior():
    """A fresh flow is N(0, I), and so is the posterior whose divergence from it is least."""
    encoded_mean = torch.full((64, 3, 4), 2.0, requires_grad=True)
    encoded_logvar = torch.full((64, 3, 4), -3.0, requires_grad=True)
    sizes = AutoencoderConfig(tokens=3, channels=4)
    context = RegulariserContext(None, sizes, num_classes=10, seed=0, world=World())
    regulariser = config(variance="learned").regulariser.simflow.build(context)
    optimiser = torch.optim.Adam([encoded_mean, encoded_logvar], lr=0.05)
    for step in range(300):
        noise = torch.randn(64, 3, 4, generator=torch.Generator().manual_seed(step))
        latents = encoded_mean + (0.5 * encoded_logvar).exp() * noise
        optimiser.zero_grad()
        labels = {"label": torch.zeros(64, dtype=torch.long)}
        regulariser.term(Encoded(latents, encoded_mean, encoded_logvar), labels, StepRandom(0, step)).backward()
        optimiser.step()
    assert encoded_mean.mean().abs() < 0.02 and encoded_logvar.mean().abs() < 0.05


def test_the_likelihoods_gradient_reaches_encoder_and_flow_and_nothing_else(objective, batch):
    random = StepRandom(0, 2)
    objective(batch, random).terms["simflow"].backward()
    silent = {name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()}
    # Of 10 classes 8 are seen, and biases of the keys shift all attention alike: tensors as a whole have gradients.
    assert {name for name in silent if not name.startswith("autoencoder.decoder.")} == set()
    assert {name for name in silent if name.startswith("autoencoder.decoder.")} == {
        name for name, _ in objective.named_parameters() if name.startswith("autoencoder.decoder.")
    }


def test_the_flow_is_averaged_and_checkpointed_with_the_autoencoder(objective, batch, tmp_path):
    train, optim = config().train, OptimConfig(lr=1e-2, ema_decay=0.5)
    loop = TrainingLoop(objective, objective.averaged, train, optim, World(), tmp_path, progress=False)
    loop.run(batch for _ in range(train.steps))
    [first, *_] = objective.regularisers[0].generator.parameters()
    raw = first.detach().clone()
    with loop.averaged_weights():
        averaged = first.detach().clone()
    assert not torch.equal(raw, averaged)
    again = build_objective(config(weight=0.1), tmp_path, World(), 10, None)
    resumed = TrainingLoop(again, again.averaged, train, optim, World(), tmp_path, progress=False)
    assert resumed.step == train.steps
    assert all(torch.equal(a, b) for a, b in zip(objective.state_dict().values(), again.state_dict().values()))
    with resumed.averaged_weights():
        assert torch.equal(next(again.regularisers[0].generator.parameters()), averaged)


def test_a_dry_run_counts_the_same_for_a_part_whichever_others_read_the_latents():
    def arithmetic(name):
        objective = build_objective(config(name), None, meta, 1, None)
        return step_cost(objective, config().train).flop

    meta = World(device=torch.device("meta"))
    with meta.device:
        alone, joined = arithmetic("simflow"), arithmetic("simflow+reals")
    assert set(joined) == {*alone, "features", "regulariser reals"} and min(joined.values()) > 0
    assert all(joined[part] == pytest.approx(alone[part], rel=1e-3) for part in alone)
    assert "regulariser simflow" in dry_run(config("simflow+reals"))


@pytest.mark.parametrize(
    "options, said",
    [
        (dict(name="simflow+kl"), "kl brings another"),
        (dict(name="softvq+simflow"), "softvq brings another"),
        (dict(name="simflow+soft_pq"), "soft_pq brings another"),
        (
            dict(model={"gaussian": True}),
            "model.gaussian=true, without regulariser.simflow.variance=learned, brings another",
        ),
        (dict(model={"posterior_std": 0.3}), "leave out the former"),
        (dict(name="flow"), "write simflow"),
        (dict(variance="learned", model={"posterior_std": 0.5}), "simflow's posterior has a learned variance"),
        (dict(variance="learned", std=0.3), "write variance=fixed"),
        (dict(variance="learned", name="simflow+kl"), "kl brings another"),
        (dict(std=0), "std is a finite number above 0"),
        (dict(std=float("inf")), "std is a finite number above 0"),
        (dict(weight=0), "weight is a finite number above 0"),
        (dict(flow=FLOW | {"noise_std": 0.1}), "noise_std is 0"),
        (dict(flow=FLOW | {"sampler": {"temperature": 0.5}}), r"write model.tarflow.sampler.<option>= behind a --"),
    ],
)
def test_a_mistake_is_answered_in_one_line(options, said):
    with pytest.raises(UserError) as error:
        config(**options)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["simflow", "simflow+kl", "vavae+simflow"])
def test_the_autoencoders_own_command_names_the_script_that_trains_it_with_a_flow(name):
    with pytest.raises(UserError, match="run `bash scripts/train_simflow.sh`") as error:
        build_config(AEConfig, {"regulariser": {"name": name}})
    assert f"name={name}" in str(error.value)


def test_a_preset_of_joint_training_is_answered_with_its_script_and_an_unknown_one_with_those_that_there_are():
    with pytest.raises(UserError, match="run `PRESET=digits_simflow bash scripts/train_simflow.sh`"):
        find_ae_preset("digits_simflow", PRESETS)
    with pytest.raises(UserError, match="there is no preset 'digits_bogus' for this stage: choose one of"):
        find_ae_preset("digits_bogus", PRESETS)
    for name in ("digits", "digits_noise"):
        assert find_ae_preset(name, PRESETS) == PRESETS / f"{name}.yaml"
    assert find_ae_preset("digits_simflow", JOINT_PRESETS).parent == JOINT_PRESETS


@pytest.mark.parametrize("other", ["reals", "vavae"])
def test_an_alignment_to_frozen_features_joins_and_reads_the_latents_that_the_flow_reads(other, batch, tmp_path):
    made = build_objective(config(f"simflow+{other}", weight=0.1), tmp_path, World(), 10, None)
    output = made(batch, StepRandom(0, 0))
    weight = {r.name: r.weight for r in made.regularisers}[other]
    expected = output.terms["l2"] + 0.1 * output.terms["simflow"] + weight * output.terms[other]
    torch.testing.assert_close(output.loss, expected)
    latents = made.autoencoder.encode(batch["image"].float() / 127.5 - 1)
    latents = latents + 0.5 * StepRandom(0, 0).normal("posterior", 8, 3, 4)
    patches, whole = made.features(batch["image"].float() / 127.5 - 1)
    encoded = Encoded(latents, latents, None)
    again = made.regularisers[1].term(
        encoded, batch | {"feature_patches": patches, "feature_global": whole}, StepRandom(0, 0)
    )
    torch.testing.assert_close(output.terms[other], again)
    output.terms[other].backward()
    assert all(p.grad is not None for p in made.regularisers[1].parameters())
    assert made.autoencoder.encoder.to_latent.weight.grad.any()
    assert all(p.grad is None for p in made.regularisers[0].parameters())
