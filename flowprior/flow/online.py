"""The flow of latents that are still moving: trained on them step by step beside whatever makes them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from flowprior.distributed import World, current_world
from flowprior.flow.distribution import PATH_WEIGHTS, distribution_loss
from flowprior.flow.losses import Velocity, alignment_loss, flow_matching_loss
from flowprior.flow.path import PathDraw, draw_path_of_step
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import Section, option
from flowprior.training.auxiliary_network import AuxiliaryNetwork
from flowprior.training.ema import EMA
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom, stream_seed

if TYPE_CHECKING:
    from flowprior.flow.prior import FlowPrior

LAG_DECAY = 0.95


@dataclass
class OnlineOptimConfig(OptimConfig):
    """The online flow's optimiser: as fast as it may be, since what it learns does not stand still."""

    lr: float = option(1e-3, "peak learning rate")
    betas: tuple[float, float] = option((0.9, 0.99), "AdamW's moments")
    schedule: Literal["cosine", "constant"] = option("constant", "after the warm-up: cosine or constant")
    ema_decay: float = option(0.9, "decay of the averaged weights that latents meet; 0 switches averaging off")


@dataclass
class OnlineFlowConfig(Section):
    """The flow of the latents, and the divergence that is taken with it."""

    scope: Literal["token", "sequence"] = option(
        "token",
        "token: every token is a sample of one distribution; sequence: all tokens of a sequence together are, and the target is "
        "independent tokens",
    )
    weight: Literal["plain", "kl", "noise"] = option(
        "plain",
        f"weight of the times of the path, one of {', '.join(PATH_WEIGHTS)}: see docs/distribution_alignment.md",
    )
    t_max: float = option(0.98, "end of the path that counts", above=0, below=1)
    t_first: float = option(0.98, "t_max at the start, where coarse structure is to come first", above=0, below=1)
    t_growth_updates: int = option(
        0, "updates over which it grows linearly to t_max; 0: it is t_max from the start", least=0
    )
    steps: int = option(1, "steps of the online flow per step of the latents", least=1)
    pairs: int = option(1, "(t, noise) pairs per token in a step of the online flow", least=1)
    group_size: int = option(8, "tokens that share a time in a step of the online flow", least=1)
    optim: OnlineOptimConfig = option(OnlineOptimConfig, "")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.t_growth_updates and self.t_first > self.t_max:
            raise ValueError(f"the path grows from t_first to t_max: {self.t_first} is above {self.t_max}")


class OnlineFlow:
    """``v_q``: a flow that starts as the prior and follows the latents' distribution, with its optimiser and average.

    Example::

        online = OnlineFlow(prior)
        loss = loss + 0.1 * prior.alignment_loss(latents, objective="distribution", online=online)
        loss.backward(), optimizer.step()
        online.update(latents)

    One object in every process; all processes call :meth:`update` together, each with as many latents. Its noise is a function of
    the seed and of the number of updates, so that a resumed run and another number of processes draw the same.

    Args:
        prior: what the latents are aligned to, or its network, on the device where the work is to be done.
        config: see the class.
        tokens: per sequence; needed where ``config.scope`` is ``sequence``.
        total_updates: length of a cosine schedule.
        seed: of the noise, and of a sequence flow's weights.
        micro_batches: in how many equal parts, one after the other, each process's latents were made (gradient accumulation).
        bf16: train it under bfloat16 autocast.
        world: this process among those of the run; by default as ``torch.distributed`` is set up.
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        prior: FlowPrior | VelocityMLP,
        config: OnlineFlowConfig | None = None,
        *,
        tokens: int = 0,
        total_updates: int = 1,
        seed: int = 0,
        micro_batches: int = 1,
        bf16: bool = False,
        world: World | None = None,
    ) -> None:
        self.bf16 = bf16
        self.config, self.seed, self.micro_batches = config or OnlineFlowConfig(), seed, micro_batches
        network = prior if isinstance(prior, VelocityMLP) else prior.velocity
        self.world = world or current_world(next(network.parameters()).device)
        self.channels = network.channels
        if self.config.scope == "sequence":
            if tokens < 1:
                raise ValueError("the flow of whole sequences is built for a number of tokens: pass tokens=")
            velocity: nn.Module = SequenceVelocity(network, tokens, stream_seed(seed, "online flow"))
        else:
            velocity = copy.deepcopy(network).requires_grad_(True)
        self.tokens, optim = tokens, self.config.optim
        self.auxiliary = AuxiliaryNetwork(
            velocity, optim, total_updates * self.config.steps, self.world, name="the online flow"
        )
        self.ema = EMA(velocity, optim.ema_decay) if optim.ema_decay else None
        self.updates = 0
        self.power_since = torch.zeros(2, device=self.world.device)  # predicted and observed since the last update
        self.power = torch.zeros(2, device=self.world.device)  # their running means

    @property
    def velocity(self) -> nn.Module:
        """The network that is trained."""
        return self.auxiliary.module

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """``v_q(x, t)`` of the averaged weights, without gradients."""
        if self.ema is None:
            return self.velocity(x, t)
        return torch.func.functional_call(self.velocity, self.ema.average, (x, t))

    def group_size(self, tokens: int, wanted: int) -> int:
        """How many of ``tokens`` share a time where ``wanted`` would: all of them when sequences are the samples.

        Raises:
            ValueError: sequences of another length than the flow was built for.
        """
        if self.config.scope == "token":
            return wanted
        if tokens != self.tokens:
            raise ValueError(f"this online flow is over sequences of {self.tokens} tokens, not of {tokens}")
        return tokens

    @property
    def t_max(self) -> float:
        """End of the path that counts at present."""
        config = self.config
        share = min(1.0, self.updates / config.t_growth_updates) if config.t_growth_updates else 1.0
        return config.t_first + share * (config.t_max - config.t_first) if share < 1 else config.t_max

    def loss(self, prior: Velocity, latents: Tensor, draw: PathDraw, *, both: bool = False) -> Tensor:
        """The divergence of the latents' distribution from the prior's, and Eq. 5 added where it is to be ``both``.

        What this finds out about the flow itself is taken into :attr:`lag` by the next update.

        Args:
            prior: ``v_p``.
            latents, draw: as in :func:`flowprior.flow.distribution.distribution_loss`; groups as :meth:`group_size` says.
        """
        terms = distribution_loss(self, prior, latents, draw, weight=self.config.weight, t_max=self.t_max)
        if torch.is_grad_enabled():
            power = torch.stack([terms.predicted, terms.observed])
            # A step that is not finite is skipped: it leaves nothing.
            self.power_since += torch.where(power.isfinite().all(), power, 0.0)
        return terms.loss + alignment_loss(prior, latents, draw) if both else terms.loss

    @property
    def lag(self) -> Tensor:
        """How far the latents are ahead of this flow, in the direction from the prior to it; 0 where it is right.

        With ``predicted = E w |v_q - v_p|^2`` and ``observed = E w <y - x0 - v_p, v_q - v_p>``, running means over updates, the difference
        ``observed - predicted`` by the larger of the two. Given ``x_t``, ``y - x0`` has the latents' true velocity as its mean, so that the two are
        equal where ``v_q`` is right. Towards 1 the latents are further from the target than ``v_q`` knows; at -1 nothing of the difference
        that it predicts is real (any more), and below it points the wrong way. 0 before the first update.
        """
        predicted, observed = self.power
        return (observed - predicted) / torch.maximum(observed.abs(), predicted).clamp(min=1e-30)

    @torch.inference_mode(False)  # with gradients, also where the call stands under no_grad
    def update(self, latents: Tensor) -> dict[str, Tensor]:
        """Train ``v_q`` on ``latents (..., n, C)``, or ``(B, C)``, by Eq. 3; after the step of whatever made them.

        Returns:
            ``online_loss``, Eq. 3 per channel of this process's latents in the last step, and ``online_lag``.

        Raises:
            ValueError: latents of another number of channels than the flow's.
            NonFiniteLoss: in some process; the step that failed moved nothing.
        """
        latents, config = latents.detach().float(), self.config
        latents = latents.clone() if latents.is_inference() else latents
        if latents.shape[-1] != self.channels:
            raise ValueError(f"this online flow is over {self.channels} channels, the latents have {latents.shape[-1]}")
        if latents.dim() == 2:
            latents = latents.unsqueeze(1 if config.scope == "token" else 0)
        latents = latents.flatten(0, -3)  # (B, n, C)
        for step in range(self.updates * config.steps, (self.updates + 1) * config.steps):
            draw = self._draw_of_update(step, latents)
            # Without autocast's cache: it would keep what was cast before the weights of the step before moved.
            with torch.autocast(latents.device.type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
                loss = flow_matching_loss(self.velocity, latents, draw)
            self.auxiliary.minimise(loss, step)
            if self.ema is not None:
                self.ema.update(step)
        self.updates += 1
        power = self.world.all_reduce(self.power_since.clone())
        self.power = torch.lerp(self.power, power, 1 - min(LAG_DECAY, (self.updates - 1) / (self.updates + 9)))
        self.power_since.zero_()
        return {"online_loss": loss.detach(), "online_lag": self.lag}

    def draw(self, random: StepRandom, latents: Tensor) -> PathDraw:
        """Noise and times for a step of this flow on a micro-batch of ``latents (B, n, C)``."""
        size = self.group_size(latents.shape[1], self.config.group_size)
        return draw_path_of_step(random, latents, pairs=self.config.pairs, group_size=size, name="online")

    def _draw_of_update(self, step: int, latents: Tensor) -> PathDraw:
        """:meth:`draw` for each micro-batch that ``latents (B, n, C)`` were made in."""
        draws, slots = [], self.micro_batches * self.world.size
        for micro, part in enumerate(latents.unflatten(0, (self.micro_batches, -1))):
            random = StepRandom(self.seed, step, micro * self.world.size + self.world.rank, slots, self.world.device)
            draws.append(self.draw(random, part))
        return PathDraw(*map(torch.cat, zip(*draws)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs."""
        average = {"ema": self.ema.state_dict()} if self.ema is not None else {}
        return {
            "own": self.auxiliary.state_dict(),
            **average,
            "updates": self.updates,
            "power": self.power,
            "seen": self.power_since,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.auxiliary.load_state_dict(state["own"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.updates = state["updates"]
        self.power, self.power_since = (state[name].to(self.world.device, copy=True) for name in ("power", "seen"))


class SequenceVelocity(nn.Module):
    """Velocity of whole sequences: the prior's at every token, and a correction that sees all of them and starts at zero.

    Args:
        prior: of single tokens; it stays frozen, and is no part of this module's state.
        tokens: per sequence.
        seed: of the correction's weights.
    """

    def __init__(self, prior: VelocityMLP, tokens: int, seed: int) -> None:
        super().__init__()
        self.prior = lambda x, t: prior(x, t)
        generator = torch.Generator().manual_seed(seed)
        self.correction = VelocityMLP(tokens * prior.channels, prior.width, prior.depth, generator=generator)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """``x (..., n, C)`` and ``t (..., 1)``, one time per sequence, to ``(..., n, C)``."""
        with torch.no_grad():
            v_p = self.prior(x, t)  # (..., n, C)
        return v_p + self.correction(x.flatten(-2), t.squeeze(-1)).view(x.shape)
