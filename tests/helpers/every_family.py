"""Small models of named timm architectures: built by tests, and trained by them as torchrun's processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2]))  # torchrun's processes start in this folder

from flowprior.distributed import distributed_world
from flowprior.run.files import tensors_fingerprint
from flowprior.training.config import TrainConfig
from flowprior.training.loop import TrainingLoop
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig
from tokenizer.vit import ViTConfig

create_model = timm.create_model


def small_model(name: str, **options) -> nn.Module:
    """timm's ``create_model`` with one narrow block; grouped queries keep their groups."""
    options = {"depth": 1, "embed_dim": 96, "num_heads": 4} | options
    if "sapiens2" in name:
        options["num_kv_heads"] = 2
    return create_model(name, **options)


class Reconstruct(Objective):
    """An autoencoder's squared error."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        return StepOutput((self.autoencoder(batch["image"])[0] - batch["image"]).square().mean())


def train(name: str, world) -> dict[str, object]:
    """Three steps with ``name`` as encoder and decoder, and what the weights are before and after."""
    torch.manual_seed(0)
    vit = ViTConfig(name)
    autoencoder = Autoencoder(AutoencoderConfig(32, 16, 2, 3, encoder=vit, decoder=vit))
    before = {key: p.detach().clone() for key, p in autoencoder.named_parameters()}
    config = TrainConfig(steps=3, global_batch=2, log_steps=1, tensorboard=False)
    loop = TrainingLoop(
        Reconstruct(autoencoder), autoencoder, config, OptimConfig(lr=1e-3, warmup_steps=0), world, progress=False
    )
    generator = torch.Generator().manual_seed(world.rank)
    loop.run([{"image": torch.rand(1, 3, 32, 32, generator=generator)} for _ in range(3)])
    still = [key for key, p in autoencoder.named_parameters() if torch.equal(p, before[key])]
    return {"step": loop.step, "still": still, "weights": tensors_fingerprint(autoencoder.state_dict())}


def main() -> None:
    timm.create_model = small_model
    torch.set_num_threads(1)
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    with distributed_world() as world:
        found = {name: train(name, world) for name in names}
        (folder / f"rank{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
