"""Training steps of the paper's full recipe: ViT, LPIPS, DINO discriminator, alignment; weights random, in the real file formats.

    python tests/helpers/full_recipe.py [option=value ...]    # ViT-L twice at 256 px, batch 1: some 12 GB and a minute on two cores

Prints the seconds of every step and the largest resident memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from flowprior.distributed import World  # noqa: E402
from flowprior.flow.prior import FlowPrior  # noqa: E402
from flowprior.flow.target_map import TargetMap  # noqa: E402
from flowprior.flow.velocity import VelocityMLP  # noqa: E402
from flowprior.run.config import apply_overrides, build_config  # noqa: E402
from flowprior.run.files import write_tensors  # noqa: E402
from flowprior.run.presets import read_preset  # noqa: E402
from flowprior.run.run_folder import peak_memory_gb  # noqa: E402
from flowprior.training.loop import TrainingLoop  # noqa: E402
from tokenizer.config import PRESETS, AEConfig  # noqa: E402
from tokenizer.train_ae import build_objective  # noqa: E402


def random_vgg(file: Path) -> Path:
    """Random weights under the names of torchvision's VGG-16."""
    tensors, channels = {}, 3
    for place, width in zip(
        (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), (64, 64, 128, 128, *[256] * 3, *[512] * 6)
    ):
        layer = nn.Conv2d(channels, width, 3)
        tensors |= {f"features.{place}.weight": layer.weight, f"features.{place}.bias": layer.bias}
        channels = width
    write_tensors(file, tensors)
    return file


def full_recipe(folder: Path, *overrides: str) -> AEConfig:
    """The preset imagenet_qwen, with the discriminator and LPIPS from the first step on and random weights."""
    words = [
        "model.encoder.pretrained=false",
        "loss.adversarial.discriminator.dino.pretrained=false",
        "loss.adversarial.start_step=0",
        "loss.perceptual_ramp_steps=0",
        f"loss.perceptual_weights={random_vgg(folder / 'vgg.safetensors')}",
        "optim.warmup_steps=0",
        "train.log_steps=2",
        "train.precision=float32",
        *overrides,
    ]
    values = apply_overrides(read_preset(PRESETS / "imagenet_qwen.yaml", PRESETS), words)
    return build_config(AEConfig, values)


def train_steps(
    config: AEConfig, folder: Path, prior_width: int = 1024, prior_depth: int = 6
) -> list[dict[str, float]]:
    """Train ``config.train.steps`` steps on noise; returns what every step reports, with its ``seconds``."""
    channels, torch_generator = config.model.channels, torch.Generator().manual_seed(0)
    velocity = VelocityMLP(channels, prior_width, prior_depth, generator=torch_generator)
    prior = FlowPrior(velocity, TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, channels)))
    objective = build_objective(config, folder, World(), 1000, prior)
    loop = TrainingLoop(objective, objective.autoencoder, config.train, config.optim, World(), progress=False)
    size, rows, start = config.data.size, [], [time.perf_counter()]

    def note(output, step):
        rows.append({name.removeprefix("discriminator/"): value.item() for name, value in output.scalars.items()})
        rows[-1]["seconds"] = time.perf_counter() - start[0]
        start[0] = time.perf_counter()
        return {}

    images = torch.randint(
        0, 256, (config.train.global_batch, 3, size, size), generator=torch_generator, dtype=torch.uint8
    )
    loop.run(
        iter([{"image": images}] * config.train.steps * config.train.accumulation),
        after_optimizer_step=note,
    )
    return rows


def main() -> None:
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "train.steps=2",
            "train.global_batch=1",
            "model.checkpoint_blocks=true",
            "optim.ema_decay=0",
            *sys.argv[1:],
        ]
        for row in train_steps(full_recipe(Path(folder), *words), Path(folder)):
            print("  ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    print(f"peak memory {peak_memory_gb():.1f} GB")


if __name__ == "__main__":
    main()
