"""The small networks that judge pictures of digits, two for each embedded data set, and the command that makes their weights.

The extractor gives features for FID, precision and recall and logits for the inception score, as Inception does for
photographs. The judge, of another family and another seed, counts recognised digits, so that no number is its own witness.
The weights lie beside this file, so that measurements are comparable between machines. To make them again::

    python -m flowprior.metrics.digit_networks      # about twenty minutes on one CPU core

It first prints the accuracy on held-out digits (above 98 % for all), then trains on all of them and saves.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.data.embedded import EMBEDDED, NUM_CLASSES, split_indices
from flowprior.errors import UserError, entry_point, one_line
from flowprior.run.files import load_weights, read_tensors, write_tensors

WEIGHTS = Path(__file__).parent / "weights"
COMMAND = "python -m flowprior.metrics.digit_networks"
SIZE = 32
FEATURES = 64
EPS = 1e-5  # of every norm: what the committed weights were trained with


def prepare(images: Tensor) -> Tensor:
    """Pictures as the networks want them: uint8 ``(B, 3, H, W)`` to float ``(B, 3, 32, 32)`` in [-1, 1].

    Raises:
        ValueError: for another dtype or another number of channels.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    x = images.float() / 127.5 - 1.0  # (B, 3, H, W)
    if x.shape[-2:] != (SIZE, SIZE):
        x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False, antialias=True)  # (B, 3, 32, 32)
    return x


class DigitsExtractor(nn.Module):
    """Convolutions with batch norm, max-pooling, and a global average: features ``(B, 64)`` and logits ``(B, 10)``."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, FEATURES)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for inputs, outputs in zip((3, *widths[:-1]), widths):
            stages += [
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs, eps=EPS),
                nn.ReLU(),
                nn.MaxPool2d(2),
            ]
        self.stages = nn.Sequential(*stages[:-1])
        self.head = nn.Linear(widths[-1], NUM_CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 ``(B, 3, H, W)`` to features ``(B, 64)`` and logits ``(B, 10)``."""
        features = self.stages(prepare(images)).mean(dim=(2, 3))  # (B, 64)
        return features, self.head(features)


class MixerBlock(nn.Module):
    """One MLP across the tokens, one across the channels, each residual (Tolstikhin et al. 2021, arXiv 2105.01601)."""

    def __init__(self, tokens: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.token_norm, self.channel_norm = nn.LayerNorm(channels, eps=EPS), nn.LayerNorm(channels, eps=EPS)
        self.token_mlp = nn.Sequential(
            nn.Linear(tokens, tokens), nn.SiLU(), nn.Linear(tokens, tokens), nn.Dropout(dropout)
        )
        self.channel_mlp = nn.Sequential(
            nn.Linear(channels, 2 * channels), nn.SiLU(), nn.Linear(2 * channels, channels), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)  # (B, tokens, channels)
        return x + self.channel_mlp(self.channel_norm(x))  # (B, tokens, channels)


class DigitsJudge(nn.Module):
    """An MLP-mixer on 4 x 4 patches with layer norm: logits ``(B, 10)``."""

    def __init__(self, channels: int = 48, blocks: int = 3, patch: int = 4, dropout: float = 0.1) -> None:
        super().__init__()
        self.patch = patch
        tokens = (SIZE // patch) ** 2
        self.embed = nn.Linear(3 * patch * patch, channels)
        self.blocks = nn.ModuleList(MixerBlock(tokens, channels, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels, eps=EPS)
        self.head = nn.Linear(channels, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``(B, 3, H, W)`` to logits ``(B, 10)``."""
        x = F.unfold(prepare(images), self.patch, stride=self.patch).transpose(1, 2)  # (B, 64, 48)
        x = self.embed(x)  # (B, 64, channels)
        for block in self.blocks:
            x = block(x)  # (B, 64, channels)
        return self.head(self.norm(x).mean(dim=1))  # (B, 10)


class Recipe(NamedTuple):
    """How one of the networks is made: ``epochs`` are passes over each data set."""

    network: type[nn.Module]
    seed: int
    epochs: dict[str, int]


NETWORKS = {
    "extractor": Recipe(DigitsExtractor, seed=11, epochs={"digits": 40, "mnist": 20}),
    "judge": Recipe(DigitsJudge, seed=23, epochs={"digits": 100, "mnist": 50}),
}


def weights_file(data: str, network: str, folder: Path = WEIGHTS) -> Path:
    """Where the weights of the ``extractor`` or ``judge`` of an embedded data set lie."""
    return folder / f"{data}_{network}.safetensors"


def load_extractor(data: str, path: str | Path | None = None) -> DigitsExtractor:
    """The extractor of an embedded data set with its committed weights (or those in ``path``), in eval mode and frozen."""
    return _load(data, "extractor", path)


def load_judge(data: str, path: str | Path | None = None) -> DigitsJudge:
    """The judge of an embedded data set with its committed weights (or those in ``path``), in eval mode and frozen."""
    return _load(data, "judge", path)


def _load(data: str, name: str, path: str | Path | None) -> nn.Module:
    path = Path(path) if path is not None else weights_file(data, name)
    network = NETWORKS[name].network()
    if not path.is_file():
        raise UserError(f"the weights {path} of the {name} of {data} do not exist; make them with: {COMMAND}")
    try:
        load_weights(network, read_tensors(path, "file of weights"), "the network")
    except UserError as error:
        raise UserError(
            f"{path} does not hold the weights of the {name} of {data} ({one_line(error, limit=None)}); make them again with: {COMMAND}"
        ) from None
    return network.requires_grad_(False).eval()


@torch.no_grad()
def recognised_share(data: str, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    """Share in [0, 1] of ``images`` (uint8 ``(N, 3, H, W)``) in which the judge of ``data`` sees the digit of ``labels`` (int ``(N,)``)."""
    if len(images) != len(labels) or len(images) == 0:
        raise ValueError(
            f"expected one label per image and at least one, got {len(images)} images and {len(labels)} labels"
        )
    return _accuracy(load_judge(data).to(images.device), images, labels.to(images.device), batch_size)


@torch.no_grad()
def judge_confidence(data: str, images: Tensor, batch_size: int = 256) -> Tensor:
    """The largest probability by the judge of ``data`` of a digit in each of ``images`` (uint8 ``(N, 3, H, W)``): ``(N,)``."""
    judge = load_judge(data).to(images.device)
    return torch.cat([_logits(judge, part).softmax(1).amax(1) for part in images.split(batch_size)])


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    right = 0
    for start in range(0, len(images), batch_size):
        right += int(
            (_logits(network, images[start : start + batch_size]).argmax(1) == labels[start : start + batch_size]).sum()
        )
    return right / len(images)


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    output = network(images)
    return output[1] if isinstance(output, tuple) else output


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture turned by up to 12 degrees, scaled by up to 12 %, and moved by up to 3 pixels of 32; uint8 in and out."""
    turn, scale, dx, dy = (2 * torch.rand(4, len(images), generator=generator) - 1).unbind()  # each (B,) in [-1, 1]
    angle, factor = turn * math.radians(12), 1 + 0.12 * scale
    cos, sin, shift = angle.cos() * factor, angle.sin() * factor, 3 / (SIZE / 2)
    theta = torch.stack([cos, -sin, shift * dx, sin, cos, shift * dy], dim=1).view(-1, 2, 3)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    return F.grid_sample(images.float(), grid, align_corners=False).round().to(torch.uint8)  # (B, 3, H, W)


def train(data: str, name: str, indices: Tensor, epochs: int | None = None, batch_size: int = 64) -> nn.Module:
    """Train ``extractor`` or ``judge`` on the images of ``data`` at ``indices``; AdamW, one cosine cycle, smoothed labels.

    The result depends on the arguments and on the machine's arithmetic only; the global generator is restored afterwards.
    """
    recipe = NETWORKS[name]
    epochs = epochs or recipe.epochs[data]
    generator = torch.Generator().manual_seed(recipe.seed)
    images, labels = (part[indices] for part in EMBEDDED[data].images(SIZE))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = recipe.network().train()
        optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.02)
        steps = epochs * math.ceil(len(images) / batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=3e-3, total_steps=steps, pct_start=0.1)
        for _ in range(epochs):
            for batch in torch.randperm(len(images), generator=generator).split(batch_size):
                logits = _logits(network, augment(images[batch], generator))  # (B, 10)
                loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.05)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return network.eval()


@entry_point
def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Train the two networks that judge pictures of digits.")
    parser.add_argument("--data", nargs="+", choices=sorted(EMBEDDED), default=sorted(EMBEDDED), help="whose networks")
    parser.add_argument(
        "--networks", nargs="+", choices=sorted(NETWORKS), default=sorted(NETWORKS), help="which to train"
    )
    parser.add_argument(
        "--epochs",
        type=int,
        help="passes over the images (default: 40 and 20 for the extractors, 100 and 50 for the judges)",
    )
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="folder for the weight files (default: beside this module)"
    )
    arguments = parser.parse_args()
    for data in arguments.data:
        images, labels = EMBEDDED[data].images(SIZE)
        held_out = split_indices(len(images), "val")
        for name in arguments.networks:
            network = train(data, name, split_indices(len(images), "train"), arguments.epochs)
            accuracy = _accuracy(network, images[held_out], labels[held_out])
            print(f"{data}, {name}: held-out accuracy {accuracy:.4f}", flush=True)
            network = train(data, name, split_indices(len(images), "all"), arguments.epochs)
            write_tensors(weights_file(data, name, arguments.out), network.state_dict())
            print(
                f"{data}, {name}: trained on all images, {weights_file(data, name, arguments.out)} written", flush=True
            )


if __name__ == "__main__":
    main()
