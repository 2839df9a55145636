"""Stage 1's objective: flow matching on projected target features."""

from __future__ import annotations

from torch import Tensor

from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import PathDraw, draw_path_of_step, group_size_for
from flowprior.flow.target_map import TargetMap
from flowprior.flow.times import TimeConfig
from flowprior.flow.velocity import VelocityMLP
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.randomness import StepRandom


class FlowMatchingObjective(Objective):
    """Eq. 3 over batches of raw features.

    Args:
        velocity: the network that is trained.
        target_map: fixed.
        pairs: (t, noise) pairs per feature.
        group_size: how many features of the batch share a time (see :func:`flowprior.flow.path.draw_path`).
        times: distribution of the times; uniform without it.
    """

    def __init__(
        self,
        velocity: VelocityMLP,
        target_map: TargetMap,
        pairs: int = 4,
        group_size: int = 1,
        times: TimeConfig | None = None,
    ) -> None:
        super().__init__()
        self.velocity, self.target_map = velocity, target_map
        self.pairs, self.group_size, self.times = pairs, group_size, times or TimeConfig()

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        data = self.target_map(batch["features"])  # (B, C)
        size = group_size_for(len(data), self.group_size)
        data = data.view(-1, size, data.shape[-1])  # (B / size, size, C)
        noise, t = draw_path_of_step(random, data, pairs=self.pairs, group_size=size)
        return StepOutput(flow_matching_loss(self.velocity, data, PathDraw(noise, self.times.quantile(t))))
