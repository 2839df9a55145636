"""The discriminator beside the autoencoder, through the real stage: exact resume, nothing missing from a checkpoint, cuts of the batch."""

from pathlib import Path

import pytest
import torch

from flowprior.data.images import ImageConfig, open_images
from flowprior.distributed import World
from flowprior.errors import NonFiniteLoss, UserError
from flowprior.run.config import build_config
from flowprior.run.files import tensors_fingerprint
from flowprior.run.reporting import TIMINGS, read_log
from flowprior.run.run_folder import RunFolder
from flowprior.training.config import TrainConfig
from flowprior.training.randomness import StepRandom
from networks import values
from tokenizer import train_ae
from tokenizer.losses.adversarial import AdversarialConfig, Adversary

STEPS, START = 8, 2
DISCRIMINATORS = {
    "dino": {
        "name": "dino",
        "dino": {"name": "vit_tiny_patch16_224", "pretrained": False, "size": 16, "blocks": [1, 2]},
    },
    "patchgan": {"name": "patchgan", "patchgan": {"width": 4, "layers": 1}},
}


def adversarial(discriminator: str, **options) -> dict:
    full = {"weight": 0.2, "start_step": START, "lecam_weight": 0.01, "lecam_decay": 0.5, "consistency_weight": 4.0}
    full |= {"game_weight": 0.2}
    return full | {"optim": {"lr": 1e-2, "warmup_steps": 2}, "discriminator": DISCRIMINATORS[discriminator]} | options


def make_config(folder: Path, discriminator: str = "patchgan", accumulation: int = 1, **options) -> train_ae.AEConfig:
    vit = {"width": 12, "depth": 1, "heads": 3}
    return build_config(
        train_ae.AEConfig,
        {
            "run_dir": str(folder),
            "data": {"size": 16},
            "regulariser": {"name": "none"},
            "loss": {"adversarial": adversarial(discriminator, **options)},
            "monitor": {"images": 16},
            "model": {"image_size": 16, "patch_size": 8, "tokens": 2, "channels": 4, "encoder": vit, "decoder": vit},
            "optim": {"lr": 1e-2},
            "train": {
                "steps": STEPS,
                "global_batch": 4,
                "accumulation": accumulation,
                "checkpoint_steps": 1,
                "keep_checkpoints": 99,
                "log_steps": 1,
                "eval_steps": 0,
                "tensorboard": False,
            },
        },
    )


class Killed(Exception):
    pass


class Run:
    """One run of the stage, and what it ended with."""

    def __init__(self, folder: Path, die_at: int | None = None, forget: str = "", **options) -> None:
        config, images = make_config(folder, **options), open_images(ImageConfig(size=16))
        read, reads = images.batch, []

        def batch(keys):
            if die_at is not None and keys[0].epoch >= 0:
                if len(reads) == die_at:
                    raise Killed
                reads.append(keys)
            return read(keys)

        images.batch = batch
        self.folder, build = RunFolder(folder, "ae"), train_ae.build_objective

        def keep(*arguments):
            self.objective = build(*arguments)
            if forget:  # the checkpoint's state of this part is passed over
                self.objective.adversary.saved()[forget].load_state_dict = lambda state: None
            return self.objective

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_ae, "build_objective", keep)
            self.folder.open(config, World())
            train_ae.train(config, self.folder, World(), images, images, None)

    def hash(self) -> str:
        adversary = self.objective.adversary
        moments = {
            f"{number}.{name}": torch.as_tensor(value)
            for number, state in adversary.auxiliary.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        heads = {f"d.{name}": value for name, value in adversary.auxiliary.module.state_dict().items()}
        lecam = {f"lecam.{name}": value for name, value in adversary.lecam.state_dict().items()}
        return tensors_fingerprint({**moments, **heads, **lecam, **self.objective.autoencoder.state_dict()})

    def metrics(self) -> list[dict]:
        return [{k: v for k, v in row.items() if k not in TIMINGS} for row in read_log(self.folder.path / "log.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("die_at", [1, START, START + 1, 5])
def test_a_run_that_stops_before_at_and_after_the_discriminators_start_goes_on_bit_for_bit(whole, tmp_path, die_at):
    with pytest.raises(Killed):
        Run(tmp_path, die_at)
    resumed = Run(tmp_path)
    assert resumed.hash() == whole.hash() and resumed.metrics() == whole.metrics()


@pytest.mark.parametrize("part", ["discriminator", "lecam"])
def test_a_resumed_run_needs_the_discriminator_and_the_running_means(whole, tmp_path, part):
    with pytest.raises(Killed):
        Run(tmp_path, 5)
    assert Run(tmp_path, forget=part).hash() != whole.hash()


def test_a_checkpoint_without_the_discriminator_is_refused(tmp_path):
    with pytest.raises(Killed):
        Run(tmp_path, 5)
    manifest = sorted(tmp_path.glob("ae/checkpoints/step_*/manifest.json"))[-1]
    manifest.write_text(manifest.read_text().replace('"discriminator.pt"', '"critic.pt"'))
    with pytest.raises(UserError, match="discriminator"):
        Run(tmp_path)


def test_with_a_frozen_transformer_a_run_goes_on_bit_for_bit_from_checkpoints_of_the_heads_alone(tmp_path):
    run = Run(tmp_path / "whole", discriminator="dino")
    state = torch.load(run.folder.path / "checkpoints" / f"step_{STEPS:08d}" / "discriminator.pt", weights_only=True)
    assert state["module"].keys() == run.objective.adversary.discriminator.heads.state_dict().keys()
    with pytest.raises(Killed):
        Run(tmp_path / "resumed", START + 2, discriminator="dino")
    assert Run(tmp_path / "resumed", discriminator="dino").hash() == run.hash()


def test_the_discriminator_is_heard_and_trained_from_its_start_on(whole):
    rows = [row for row in whole.metrics() if "loss" in row]
    heard = [
        "adversarial" in row and "discriminator/game" in row and "latent_gradient/adversarial" in row for row in rows
    ]
    assert heard == [step >= START for step in range(STEPS)]
    assert all(row["weighted/adversarial"] == pytest.approx(0.2 * row["adversarial"]) for row in rows[START:])
    assert [row["discriminator/lecam"] == 0 for row in rows[START : START + 2]] == [True, False]
    terms = ("discriminator/game", "discriminator/lecam", "discriminator/consistency")
    for row in rows[START:]:
        game, lecam, consistency = (row[name] for name in terms)
        expected = 0.2 * (game + 0.01 * lecam) + 4 * consistency
        assert row["discriminator/discriminator"] == pytest.approx(expected, rel=1e-5)


def test_two_micro_batches_train_both_networks_as_one_batch_does(whole, tmp_path):
    cut = Run(tmp_path, accumulation=2)
    for row, other in zip(whole.metrics(), cut.metrics(), strict=True):
        for key in ("loss", "adversarial", "discriminator/game", "discriminator/lecam", "discriminator/consistency"):
            if key in row:
                assert other[key] == pytest.approx(row[key], rel=1e-5, abs=1e-6), (key, row["step"])


def build(**options) -> Adversary:
    torch.manual_seed(0)
    config = build_config(AdversarialConfig, adversarial("patchgan", start_step=0, **options))
    return Adversary(config, 16, TrainConfig(steps=100, global_batch=8), World())


def pictures(generator) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.rand(8, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(2))


@pytest.mark.parametrize("kind", ["hinge", "non_saturating", "vanilla"])
def test_a_trained_discriminator_tells_bright_from_dark_and_pulls_reconstructions_to_the_real_side(kind, generator):
    adversary = build(kind=kind, augment=[], consistency_weight=0.0, lecam_weight=0.0)
    real, fake = pictures(generator)
    real, fake = real * 0.1 + 0.5, fake * 0.1 - 0.5
    for step in range(40):
        told = adversary.update(real, fake, step)
    assert told["logits_real"] > told["logits_fake"] + 0.5
    moved = fake.clone().requires_grad_()
    before = adversary.discriminator.eval()(fake).mean()
    [gradient] = torch.autograd.grad(adversary.term(moved, StepRandom(0, 41)), moved)
    assert adversary.discriminator(fake - 5 * gradient / gradient.norm()).mean() > before
    assert (gradient.sum((1, 2, 3)) < 0).all()  # brighter is better


def test_hearing_the_discriminator_leaves_no_gradient_in_it(generator):
    adversary = build()
    reconstruction = pictures(generator)[0].requires_grad_()
    adversary.term(reconstruction, StepRandom(0, 0)).backward()
    assert reconstruction.grad.abs().sum() > 0
    assert all(p.grad is None for p in adversary.discriminator.parameters())


def test_in_bfloat16_the_power_iterations_are_those_of_float32(generator):
    buffers = []
    for autocast in (None, torch.autocast("cpu", torch.bfloat16)):
        adversary, real_and_fake = build(optim={"lr": 1e-9}), pictures(torch.Generator().manual_seed(0))
        for step in range(3):
            adversary.update(*real_and_fake, step, autocast)
        named = adversary.auxiliary.module.state_dict().items()
        buffers.append([value for name, value in named if name.endswith(("_u", "_v"))])
    assert buffers[0] and all(one.dtype == torch.float32 for one in buffers[1])
    for one, other in zip(*buffers, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_loss_of_the_discriminator_that_is_not_finite_stops_before_its_step(generator):
    adversary = build()
    real, fake = pictures(generator)
    adversary.update(real, fake, 0)
    state = [
        *adversary.auxiliary.module.parameters(),
        *adversary.auxiliary.module.buffers(),
        *adversary.lecam.buffers(),
    ]
    before = [tensor.clone() for tensor in state]
    with pytest.raises(NonFiniteLoss, match="process 0: the discriminator's loss"):
        adversary.update(real, fake * float("nan"), 1)
    after = [
        *adversary.auxiliary.module.parameters(),
        *adversary.auxiliary.module.buffers(),
        *adversary.lecam.buffers(),
    ]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_the_adaptive_weight_makes_both_pull_equally_at_the_decoders_last_layer(tmp_path):
    config = make_config(tmp_path, adaptive=True, start_step=0)
    objective = train_ae.build_objective(config, tmp_path, World(), 10, None)
    batch = {"image": torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)}
    terms = values(objective(batch, StepRandom(0, 0)))
    weight = objective.autoencoder.decoder.to_pixels.weight
    pulls = [torch.autograd.grad(terms[name], weight, retain_graph=True)[0].norm() for name in ("l2", "adversarial")]
    expected = 0.2 * pulls[0] / (pulls[1] + 1e-4)
    torch.testing.assert_close(terms["weighted/adversarial"], expected * terms["adversarial"].detach())


def test_missing_dino_weights_are_one_sentence_with_the_file_its_source_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    config = make_config(tmp_path)
    config.loss.adversarial.discriminator.name = "dino"
    config.loss.adversarial.discriminator.dino.pretrained = True
    config.loss.adversarial.discriminator.dino.name = "vit_small_patch16_224.dino"
    with pytest.raises(UserError, match="huggingface.co/timm/vit_small_patch16_224.dino") as caught:
        train_ae.build_objective(config, tmp_path, World(), 10, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"weight": -1},
        {"augment": ["blur"]},
        {"cutout": 2},
        {"strong_cutout": -0.1},
        {"augment_probability": 1.5},
        {"game_weight": -1},
        {"lecam_decay": 1},
        {"augment": [], "consistency_weight": 1},
    ],
)
def test_settings_that_cannot_be_are_refused(values):
    with pytest.raises(UserError):
        build_config(AdversarialConfig, values)
