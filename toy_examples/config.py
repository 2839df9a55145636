"""What a toy run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

from flowprior.training.config import option
from flowprior.training.loop import TrainConfig
from flowprior.training.optim import OptimConfig


@dataclass
class FlowConfig:
    """Stage 1: the flow of the target."""

    width: int = option(512, "hidden width of the velocity network")
    depth: int = option(4, "residual blocks of the velocity network")
    pairs: int = option(1, "(t, noise) pairs per sample")
    group_size: int = option(1, "how many samples share a time; 1: none")
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.pairs, self.group_size) < 1:
            raise ValueError("width, depth, pairs and group_size are at least 1")


@dataclass
class LatentConfig:
    """Stage 2: free latents on the frozen flow's L_align. ``train.global_batch`` is how many; all of them are in every step."""

    pairs: int = option(1, "(t, noise) pairs per latent and step")
    group_size: int = option(1, "how many latents share a time; 1: none")
    record_pairs: int = option(32, "(t, noise) pairs of the recorded L_align")
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")

    def __post_init__(self) -> None:
        if min(self.pairs, self.group_size, self.record_pairs) < 1:
            raise ValueError("pairs, group_size and record_pairs are at least 1")


@dataclass
class MapConfig:
    """The maps over the plane, and what is compared on them."""

    grid: int = option(60, "points per side")
    pairs: int = option(64, "(t, noise) pairs of L_align at each point")
    nll_clip: float = option(8.0, "NLL is cut at this level in maps and in the correlation over the grid")

    def __post_init__(self) -> None:
        if self.grid < 2 or self.pairs < 1:
            raise ValueError("grid is at least 2 and pairs at least 1")


@dataclass
class ToyConfig:
    """A whole run of one distribution."""

    flow: FlowConfig = field(default_factory=FlowConfig)
    latents: LatentConfig = field(default_factory=LatentConfig)
    map: MapConfig = field(default_factory=MapConfig)
