"""Stage 2 in the plane: free points move down the frozen flow's L_align, and where they were is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn

from flowprior.distributed import World
from flowprior.flow.likelihood import alignment_per_token
from flowprior.flow.losses import alignment_loss
from flowprior.flow.online import OnlineFlow
from flowprior.flow.path import draw_path_of_step, group_size_for
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import option
from flowprior.run.files import read_tensors, write_tensors
from flowprior.run.run_folder import RunFolder, Stopwatch
from flowprior.training.loop import TrainingLoop
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.randomness import StepRandom, stream_seed
from toy_examples.config import LatentConfig
from toy_examples.flow_stage import CHANNELS, REMEDY, FrozenFlow

ONLINE_WIDTH, ONLINE_DEPTH = 128, 3  # beside a closed form, which has no sizes


@dataclass
class LatentRun:
    """Stage 2's resolved config: its options and the flow that it belongs to."""

    prior: str = option("", "fingerprint of the flow")
    options: LatentConfig = option(LatentConfig, "")


@dataclass
class AlignedLatents:
    """The way of the latents.

    Attributes:
        steps: ``(S,)``, at which they were looked at, from 0 on.
        points: ``(S, N, 2)``.
        alignment: ``(S,)``, mean of L_align per channel over the points.
        seconds: that the stage took.
    """

    steps: Tensor
    points: Tensor
    alignment: Tensor
    seconds: float

    @property
    def start(self) -> Tensor:
        return self.points[0]

    @property
    def end(self) -> Tensor:
        return self.points[-1]


class Latents(nn.Module):
    """``(N, 2)`` free points, drawn from N(0, std^2 I)."""

    def __init__(self, number: int, seed: int, std: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(stream_seed(seed, "latents"))
        self.points = nn.Parameter(std * torch.randn(number, CHANNELS, generator=generator))


class AlignmentObjective(Objective):
    """Eq. 5, or the divergence that an online flow takes, as a function of the latents alone."""

    def __init__(
        self,
        latents: Latents,
        velocity: Callable[[Tensor, Tensor], Tensor],
        config: LatentConfig,
        online: OnlineFlow | None = None,
    ) -> None:
        super().__init__()
        self.latents, self.config, self.online = latents, config, online
        # Held by a function, a frozen network is no part of what is trained.
        self.velocity = lambda x, t: velocity(x, t)

    def groups(self) -> Tensor:
        """The points as ``(N / size, size, 2)``."""
        points = self.latents.points
        return points.view(-1, group_size_for(len(points), self.config.group_size), CHANNELS)

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        config, groups = self.config, self.groups()
        draw = draw_path_of_step(random, groups, pairs=config.pairs, group_size=groups.shape[1])
        if self.online is None:
            return StepOutput(alignment_loss(self.velocity, groups, draw))
        return StepOutput(self.online.loss(self.velocity, groups, draw, both=config.objective == "both"))


class Snapshots:
    """Where the latents were at the recorded steps, and their L_align there; a part of every checkpoint."""

    def __init__(self) -> None:
        self.by_step: dict[int, tuple[Tensor, float]] = {}

    def record(self, step: int, points: Tensor, alignment: float) -> None:
        self.by_step[step] = (points.detach().cpu().clone(), alignment)

    def state_dict(self) -> dict[str, Tensor]:
        steps = sorted(self.by_step)
        points, alignment = zip(*(self.by_step[step] for step in steps))
        return {
            "steps": torch.tensor(steps),
            "points": torch.stack(points),
            "alignment": torch.tensor(alignment, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        rows = zip(state["steps"].tolist(), state["points"], state["alignment"].tolist())
        self.by_step = {step: (points, alignment) for step, points, alignment in rows}


def online_flow(flow: FrozenFlow, config: LatentConfig, world: World) -> OnlineFlow:
    """The latents' own flow. It starts as the frozen one; beside a closed form, as a fresh network."""
    network = flow.velocity
    if not isinstance(network, VelocityMLP):
        generator = torch.Generator().manual_seed(stream_seed(config.train.seed, "online flow"))
        network = VelocityMLP(CHANNELS, ONLINE_WIDTH, ONLINE_DEPTH, generator=generator).to(world.device)
    steps, seed = config.train.steps, config.train.seed
    return OnlineFlow(network, config.online, total_updates=steps, seed=seed, world=world)


def align_latents(flow: FrozenFlow, config: LatentConfig, run_dir: Path, device: torch.device) -> AlignedLatents:
    """Minimise ``config.objective`` over the latents, resumed or reused where it can be; they are looked at every ``eval_steps``."""
    folder, world = RunFolder(run_dir, "latents", REMEDY), World(device=device)
    folder.open(LatentRun(flow.fingerprint, config), world)
    file = folder.path / "latents.safetensors"
    if not folder.is_complete():
        stopwatch = Stopwatch(folder.path)
        latents = Latents(config.train.global_batch, config.train.seed, config.start_std).to(device)
        online = online_flow(flow, config, world) if config.objective != "likelihood" else None
        objective, snapshots = AlignmentObjective(latents, flow.velocity, config, online), Snapshots()

        def look(step: int) -> dict[str, float]:
            points = latents.points.detach()
            per_token = alignment_per_token(flow.velocity, points, pairs=config.record_pairs)
            alignment = per_token.mean().item() / CHANNELS
            snapshots.record(step, points, alignment)
            return {"alignment": alignment}

        def follow(output: StepOutput, step: int) -> dict[str, Tensor]:
            return online.update(objective.groups())

        with stopwatch.kept(world):
            look(0)
            loop = TrainingLoop(
                objective,
                latents,
                config.train,
                config.optim,
                world,
                folder.path,
                saved={"snapshots": snapshots} | ({"online_flow": online} if online else {}),
                description="latents",
            )
            nothing: Iterator[dict[str, Tensor]] = ({} for _ in count())
            loop.run(nothing, evaluate=look, after_optimizer_step=follow if online else None)
        write_tensors(file, snapshots.state_dict())
        folder.complete({"steps": config.train.steps, "seconds": round(stopwatch.seconds(), 2)})
    else:
        folder.say_complete()
    kept = read_tensors(file, "latents")
    seconds = folder.read_result("python toy_examples/run.py")["seconds"]
    return AlignedLatents(kept["steps"], kept["points"], kept["alignment"], seconds)
