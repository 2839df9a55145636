"""What a toy run is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flowprior.flow.online import OnlineFlowConfig
from flowprior.flow.prior import Alignment
from flowprior.run.config import option
from flowprior.training.config import TrainConfig
from flowprior.training.optim import OptimConfig


@dataclass
class FlowConfig:
    """Stage 1: the flow of the target."""

    width: int = option(512, "hidden width of the velocity network")
    depth: int = option(4, "residual blocks of the velocity network")
    pairs: int = option(1, "(t, noise) pairs per sample")
    group_size: int = option(1, "how many samples share a time; 1: none")
    stable_target: bool = option(
        False, "average the regression target over the batch (Xu et al. 2023); off: the paper's Eq. 3"
    )
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.pairs, self.group_size) < 1:
            raise ValueError("width, depth, pairs and group_size are at least 1")


@dataclass
class LatentConfig:
    """Stage 2: free latents, aligned to the frozen flow. ``train.global_batch`` is how many; all of them are in every step."""

    objective: Alignment = option(
        "likelihood",
        "likelihood: the paper's, each point descends L_align; distribution: the points' distribution is matched with the target's; "
        "both: the sum",
    )
    start_std: float = option(1.0, "standard deviation of the latents at the start")
    pairs: int = option(1, "(t, noise) pairs per latent and step")
    group_size: int = option(1, "how many latents share a time; 1: none")
    record_pairs: int = option(32, "(t, noise) pairs of the recorded L_align")
    online: OnlineFlowConfig = option(OnlineFlowConfig, "")
    train: TrainConfig = option(TrainConfig, "")
    optim: OptimConfig = option(OptimConfig, "")

    def __post_init__(self) -> None:
        if min(self.pairs, self.group_size, self.record_pairs) < 1:
            raise ValueError("pairs, group_size and record_pairs are at least 1")
        if not self.start_std > 0:
            raise ValueError(f"start_std must be above 0, not {self.start_std}")


@dataclass
class DensityConfig:
    """The target's density."""

    kind: Literal["exact", "kde"] = option("exact", "exact, or the paper's kernel estimate (Eq. 26-27)")
    kde_bandwidth: float = option(0.05, "bandwidth of the kernel estimate, in units of the data's standard deviation")
    kde_samples: int = option(10_000, "samples of the kernel estimate")

    def __post_init__(self) -> None:
        if not self.kde_bandwidth > 0 or self.kde_samples < 1:
            raise ValueError("kde_bandwidth is above 0 and kde_samples at least 1")


@dataclass
class MapConfig:
    """The maps over the plane, and what is compared on them."""

    grid: int = option(60, "points per side of the maps")
    half_width: float = option(2.6, "the maps cover [-half_width, half_width]^2, in standard deviations of the data")
    pairs: int = option(64, "(t, noise) pairs of L_align at each point")
    nll_clip: float = option(1000.0, "NLL is cut at this level (nats) in the correlation over the grid")
    nll_shown: float = option(8.0, "NLL is cut at this level (nats) in pictures")
    dpi: int = option(200, "resolution of the pictures")

    def __post_init__(self) -> None:
        if self.grid < 2 or min(self.pairs, self.dpi) < 1 or not self.half_width > 0:
            raise ValueError("grid is at least 2, pairs and dpi at least 1 and half_width above 0")


@dataclass
class ToyConfig:
    """A whole run of one distribution."""

    velocity: Literal["trained", "exact"] = option(
        "trained", "trained, or exact: the closed form in the network's place"
    )
    flow: FlowConfig = field(default_factory=FlowConfig)
    latents: LatentConfig = field(default_factory=LatentConfig)
    density: DensityConfig = field(default_factory=DensityConfig)
    map: MapConfig = field(default_factory=MapConfig)
