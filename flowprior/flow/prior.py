"""A frozen flow over target features, as a regulariser for anybody's latents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from flowprior.distributed import World, best_device
from flowprior.errors import UserError, one_line
from flowprior.flow import likelihood
from flowprior.flow.losses import alignment_loss
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.online import OnlineFlow
from flowprior.flow.path import PathDraw, draw_path
from flowprior.flow.solver import sample
from flowprior.flow.target_map import TargetMap, TargetMapSettings, fit_target_map
from flowprior.flow.time_grid import KeptModulations, TimeGrid
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.files import (
    build_saved,
    load_weights,
    read_json,
    read_tensors,
    tensors_fingerprint,
    write_json,
    write_tensors,
)
from flowprior.run.hub import push_folder, saved_folder
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import stream_seed

FORMAT_VERSION = 1
Alignment = Literal["likelihood", "distribution", "both"]


class FlowPrior(nn.Module):
    """The pretrained, frozen flow of "Aligning Latent Spaces with Flow Priors" and the map into its space.

    Example::

        prior = FlowPrior.load("runs/digits/flowhead/prior").to(device)
        loss = loss + 0.01 * prior.alignment_loss(latents)  # latents: (..., channels)

    Args:
        velocity: the trained, unconditional network; it is frozen here.
        target_map: from raw target features to the flow's space.
        target: where the features came from: free JSON, kept with the prior.
    """

    def __init__(self, velocity: VelocityMLP, target_map: TargetMap, target: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.velocity, self.target_map, self.target = velocity, target_map, dict(target or {})
        self._kept = KeptModulations()
        self.requires_grad_(False)
        self.eval()

    @property
    def channels(self) -> int:
        """Channels of the latents that this prior shapes."""
        return self.velocity.channels

    @property
    def fingerprint(self) -> str:
        """16 hex digits of every weight, for whoever was trained against this prior to remember."""
        return tensors_fingerprint(self.state_dict())

    def train(self, mode: bool = True) -> FlowPrior:
        """Stays in evaluation mode: it is frozen, whatever module it is a part of."""
        return super().train(False)

    def alignment_loss(
        self,
        latents: Tensor,
        draw: PathDraw | None = None,
        *,
        pairs: int = 4,
        group_size: int = 1,
        generator: torch.Generator | None = None,
        objective: Alignment = "likelihood",
        online: OnlineFlow | None = None,
        grid: TimeGrid | None = None,
    ) -> Tensor:
        """What draws ``latents (..., n, C)`` to the target, per channel: a scalar whose gradient reaches them only.

        Args:
            latents: in the flow's space; every token counts for itself.
            draw: noise and times; without it they are drawn here.
            pairs, group_size, generator: of that draw, as in :func:`flowprior.flow.path.draw_path`.
            objective: ``likelihood`` is Eq. 5, which each latent descends by itself, to the target's densest places;
                ``distribution`` the divergence of all latents' distribution from the target's
                (:func:`flowprior.flow.distribution.distribution_loss`); ``both`` their sum.
            online: the latents' own flow, for the latter two; call its ``update`` after the latents' step.
            grid: for ``likelihood``: times are moved to those of a grid, whose modulations are computed in the first call and kept until
                grid, weights, device or autocast change: half of the arithmetic. :class:`~flowprior.flow.time_grid.TimeGrid` says what that
                does to the expectation.

        Raises:
            ValueError: latents of other channels, a prior cast from float32, an unknown objective, one that needs ``online`` without it or
                has no use for a grid with one, or a grid while the network's weights require gradients.
        """
        self._check(latents)
        if objective not in get_args(Alignment):
            raise ValueError(f"objective {objective!r} is unknown: write one of {', '.join(get_args(Alignment))}")
        of_distributions = objective != "likelihood"
        if of_distributions and grid is not None:
            raise ValueError(f"objective {objective!r} takes no grid of times: leave it out")
        if of_distributions and online is None:
            raise ValueError(f"objective {objective!r} needs the latents' own flow: pass online=OnlineFlow(prior)")
        if draw is None:
            if of_distributions:
                group_size = online.group_size(torch.atleast_2d(latents).shape[-2], group_size)
            draw = draw_path(latents, pairs=pairs, group_size=group_size, generator=generator)
        if of_distributions:
            return online.loss(self.velocity, latents, draw, both=objective == "both")
        return self._on_grid(latents, draw, grid) if grid else alignment_loss(self.velocity, latents, draw)

    def _on_grid(self, latents: Tensor, draw: PathDraw, grid: TimeGrid) -> Tensor:
        """Eq. 5 at times of ``grid``, with kept modulations."""
        strata = grid.strata(draw.t)  # (..., P, n / size)
        rows = self._kept.of(self.velocity, grid)  # [(count, 3 W), ..., (count, 2 W)]

        def velocity(x: Tensor, _: Tensor) -> Tensor:
            return self.velocity.velocity(x, [row[strata.unsqueeze(-1)] for row in rows])

        return alignment_loss(velocity, latents, PathDraw(draw.noise, grid.times(strata)))

    def project(self, features: Tensor) -> Tensor:
        """Raw target features ``(..., d2)`` in the flow's space, ``(..., C)``."""
        return self.target_map(features)

    def sample(
        self, count: int, *, steps: int = 50, method: str = "heun", generator: torch.Generator | None = None
    ) -> Tensor:
        """``(count, C)`` samples of the learned distribution."""
        self.target_map.check_float32()
        shape, device = (count, self.channels), self.target_map.matrix.device
        return sample(self.velocity, shape, steps=steps, method=method, generator=generator, device=device)

    def log_prob(self, latents: Tensor, **options: Any) -> Tensor:
        """Log-density of the learned distribution (Eq. 4) at ``latents (..., C)``, ``(...)`` in nats, by solving the ODE backward.

        The divergence is exact up to 8 channels and Hutchinson's estimate above; options of
        :func:`flowprior.flow.likelihood.log_prob`. Without gradients: to raise the likelihood, minimise :meth:`alignment_loss`.

        Raises:
            ValueError: latents of another number of channels.
        """
        self._check(latents)
        return likelihood.log_prob(self.velocity, latents.float(), **options)

    def elbo_terms(self, latents: Tensor, **options: Any) -> likelihood.ElboTerms:
        """L_align and C of Proposition 1 (Eq. 6) at each of ``latents (..., C)``; options of :func:`flowprior.flow.likelihood.elbo_terms`.

        Raises:
            ValueError: latents of another number of channels.
        """
        self._check(latents)
        return likelihood.elbo_terms(self.velocity, latents.float(), **options)

    def _check(self, latents: Tensor) -> None:
        self.target_map.check_float32()
        if latents.shape[-1] != self.channels:
            raise ValueError(f"this prior is over {self.channels} channels, the latents have {latents.shape[-1]}")

    @classmethod
    @torch.inference_mode(False)  # with gradients, also under no_grad
    def fit(
        cls,
        features: Tensor,
        channels: int = 32,
        projection: str = "random",
        *,
        width: int = 1024,
        depth: int = 6,
        steps: int = 10_000,
        batch_size: int = 512,
        lr: float = 2e-4,
        seed: int = 0,
        progress: bool = True,
    ) -> FlowPrior:
        """Train a prior on any ``features (N, d)``, in memory, on the GPU if there is one.

        A run with checkpoints, a log and several processes is ``bash scripts/train_flowhead.sh``; the training is the same.

        Args:
            features: float ``(N, d)``, a tensor or an array; gradients do not reach them.
            channels: of the latents to be shaped.
            projection: ``random``, ``avg_pool``, ``pca`` or ``identity``.
            width, depth, steps, batch_size, lr, seed: of the velocity network and its training.
            progress: show a bar with rate and ETA.

        Raises:
            ValueError: features or sizes that :func:`fit_target_map` refuses.
        """
        from flowprior.training.config import TrainConfig
        from flowprior.training.loop import TrainingLoop  # not needed to use a prior

        features = torch.as_tensor(features).detach()
        settings = TargetMapSettings(channels, projection, seed=seed)
        generator = torch.Generator().manual_seed(stream_seed(seed, "velocity"))
        world = World(device=best_device())
        objective = FlowMatchingObjective(
            VelocityMLP(channels, width, depth, generator=generator), fit_target_map(features, settings), group_size=16
        )
        objective.to(world.device)
        loop = TrainingLoop(
            objective,
            objective.velocity,
            TrainConfig(steps=steps, global_batch=batch_size, seed=seed),
            OptimConfig(lr=lr, warmup_steps=min(2500, steps // 10)),
            world,
            description="flow prior",
            progress=progress,
        )
        devices = [world.device] if world.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # the loop seeds the global generators, which are the caller's
            loop.run(_random_rows(features, batch_size, seed))
        with loop.averaged_weights():
            weights = {name: value.clone() for name, value in objective.velocity.state_dict().items()}
        load_weights(objective.velocity, weights, "the averaged velocity network")
        return cls(objective.velocity, objective.target_map, {"count": len(features), **asdict(settings)})

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; nothing pickled. A ``ValueError`` for a prior that was cast."""
        from flowprior import __version__

        self.target_map.check_float32()
        folder = Path(folder)
        write_tensors(folder / "model.safetensors", self.state_dict())
        features, channels = self.target_map.matrix.shape
        write_json(
            folder / "config.json",
            {
                "format": FORMAT_VERSION,
                "library_version": __version__,
                "velocity": self.velocity.sizes,
                "feature_channels": features,
                "channels": channels,
                "target": self.target,
                "fingerprint": self.fingerprint,
            },
        )

    @classmethod
    def load(cls, folder: str | Path) -> FlowPrior:
        """Read a prior that :meth:`save` wrote, on the CPU.

        Raises:
            UserError: the folder is not a prior, or is damaged.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json", "flow prior")
        try:
            if config["format"] != FORMAT_VERSION:
                raise UserError(
                    f"the flow prior in {folder} has format {config['format']}; this version reads {FORMAT_VERSION}"
                )
            sizes, shape = dict(config["velocity"]), (config["feature_channels"], config["channels"])
            target = dict(config["target"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{folder / 'config.json'} is not a flow prior's config ({one_line(error)})") from error

        def make() -> FlowPrior:
            target_map = TargetMap(torch.zeros(shape[0]), torch.ones(()), torch.zeros(shape))
            return cls(VelocityMLP(**sizes), target_map, target)

        tensors = read_tensors(folder / "model.safetensors", "flow prior's weights")
        prior = build_saved(make, [sizes, {"channels": shape}], tensors, f"the flow prior in {folder}")
        if prior.fingerprint != config.get("fingerprint"):
            raise UserError(
                f"the weights in {folder / 'model.safetensors'} are not those that its config.json was written with: restore the folder"
            )
        return prior

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **download_options: Any) -> FlowPrior:
        """Read a prior from a folder, or from the Hugging Face hub by ``user/name``.

        ``download_options`` go to ``huggingface_hub.snapshot_download`` (``revision``, ``cache_dir``, ``token``, ...).
        """
        return cls.load(saved_folder(name_or_folder, "flow prior", **download_options))

    def push_to_hub(self, name: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the two files that :meth:`save` writes to the Hugging Face hub as ``user/name``; returns where they are.

        Raises:
            UserError: the hub cannot be reached, or refuses.
        """
        return push_folder(self.save, name, "flow prior", private=private, token=token)


def _random_rows(features: Tensor, count: int, seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(stream_seed(seed, "rows"))
    while True:
        yield {"features": features[torch.randint(len(features), (count,), generator=generator)]}
