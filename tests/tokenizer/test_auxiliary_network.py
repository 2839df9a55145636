"""A regulariser that trains a network of its own, beside the autoencoder, through the real stage."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from flowprior.data.images import ImageConfig, open_images
from flowprior.distributed import World
from flowprior.run.config import build_config
from flowprior.run.files import tensors_fingerprint
from flowprior.run.run_folder import RunFolder
from flowprior.training.auxiliary_network import AuxiliaryNetwork
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom
from tokenizer import train_ae
from tokenizer.autoencoder import Autoencoder, Encoded
from tokenizer.regularisers.base import Regulariser
from tokenizer.regularisers.kl import KLConfig

STEPS = 8


class OnlineCritic(Regulariser):
    """Draws latents towards where its own network, trained to tell latents from noise, takes them for noise."""

    name = "critic"

    def __init__(self) -> None:
        super().__init__(weight=0.1)
        generator = torch.Generator().manual_seed(0)
        critic = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1))
        for p in critic.parameters():
            nn.init.normal_(p, std=0.5, generator=generator)
        self.auxiliary = AuxiliaryNetwork(critic, OptimConfig(lr=0.01, schedule="constant"), STEPS, World())
        self.stepped: list[int] = []

    def term(self, encoded: Encoded, batch: dict[str, Tensor], random: StepRandom) -> Tensor:
        return self.auxiliary.module(encoded.latents).mean()

    def train_auxiliary(self, latents: Tensor, step: int) -> dict[str, Tensor]:
        assert not latents.requires_grad and latents.dtype == torch.float32
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(step))
        loss = (
            nn.functional.softplus(-self.auxiliary.module(latents)).mean()
            + nn.functional.softplus(self.auxiliary.module(noise)).mean()
        )
        self.auxiliary.minimise(loss, step)
        self.stepped.append(step)
        return {"critic_loss": loss.detach()}

    def saved(self):
        return {"critic": self.auxiliary}

    def state_hash(self) -> str:
        moments = {
            f"{i}.{name}": torch.as_tensor(value)
            for i, state in self.auxiliary.optimizer.state_dict()["state"].items()
            for name, value in state.items()
        }
        return tensors_fingerprint({**self.auxiliary.module.state_dict(), **moments})


class Killed(Exception):
    pass


def train(folder: Path, monkeypatch, die_at: int | None = None, precision: str = "float32") -> OnlineCritic:
    config = build_config(
        train_ae.AEConfig,
        {
            "run_dir": str(folder),
            "data": {"size": 16},
            "regulariser": {"name": "kl"},
            "monitor": {"images": 16},
            "model": {
                "image_size": 16,
                "patch_size": 8,
                "tokens": 2,
                "channels": 4,
                "encoder": {"width": 12, "depth": 1, "heads": 3},
                "decoder": {"width": 12, "depth": 1, "heads": 3},
            },
            "train": {
                "steps": STEPS,
                "global_batch": 4,
                "precision": precision,
                "checkpoint_steps": 3,
                "log_steps": 1,
                "eval_steps": 0,
                "tensorboard": False,
            },
        },
    )
    critic, images = OnlineCritic(), open_images(ImageConfig(size=16))
    read, reads = images.batch, []

    def batch(keys):
        if len(reads) == die_at:
            raise Killed
        reads.append(keys)
        return read(keys)

    images.batch = batch
    monkeypatch.setattr(KLConfig, "build", lambda *_: critic)
    run = RunFolder(folder, "ae")
    run.open(config, World())
    train_ae.train(config, run, World(), images, images, None)
    return critic


@pytest.fixture
def uninterrupted(tmp_path, monkeypatch) -> tuple[OnlineCritic, str]:
    return train(tmp_path / "whole", monkeypatch), Autoencoder.load(
        tmp_path / "whole" / "ae" / "autoencoder"
    ).fingerprint


def test_it_is_stepped_after_every_step_of_the_autoencoder_and_logged(uninterrupted, tmp_path):
    critic, _ = uninterrupted
    assert critic.stepped == list(range(STEPS)) and critic.state_hash() != OnlineCritic().state_hash()
    log = (tmp_path / "whole" / "ae" / "log.jsonl").read_text()
    assert log.count('"critic_loss"') == STEPS and log.count('"critic"') == STEPS


def test_it_sees_float32_latents_in_a_bfloat16_run(tmp_path, monkeypatch):
    assert train(tmp_path / "half", monkeypatch, precision="bfloat16").stepped == list(range(STEPS))


def test_it_is_checkpointed_by_the_names_that_it_gives(uninterrupted, tmp_path):
    names = {file.name for file in (tmp_path / "whole" / "ae" / "checkpoints" / f"step_{STEPS:08d}").iterdir()}
    assert "critic.pt" in names


@pytest.mark.parametrize("die_at", [1, 3, 5, 7])
def test_a_resumed_run_ends_with_the_same_bits_in_both_networks(uninterrupted, tmp_path, monkeypatch, die_at):
    whole, fingerprint = uninterrupted
    with pytest.raises(Killed):
        train(tmp_path / "resumed", monkeypatch, die_at)
    resumed = train(tmp_path / "resumed", monkeypatch)
    assert resumed.stepped == list(range(die_at // 3 * 3, STEPS))
    assert resumed.state_hash() == whole.state_hash()
    assert Autoencoder.load(tmp_path / "resumed" / "ae" / "autoencoder").fingerprint == fingerprint
