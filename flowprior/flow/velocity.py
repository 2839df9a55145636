"""The velocity network: an adaLN MLP on single tokens, whose time broadcasts over groups of tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TIME_FREQUENCIES = 256
TIME_SCALE = 1000.0  # t lives in [0, 1]; sinusoids of period 1e4 see nothing of it unless it is stretched


def time_features(t: Tensor, count: int = TIME_FREQUENCIES) -> Tensor:
    """Sinusoidal features of times ``t (...)``, shape ``(..., count)``, in float32 whatever the autocast."""
    half = count // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10_000.0) / half))
    angles = t.float().unsqueeze(-1) * TIME_SCALE * frequencies  # (..., count / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # (..., count)


class AdaLNBlock(nn.Module):
    """Residual MLP block whose shift, scale and gate come from the conditioning vector; the identity at initialisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.chunk(3, dim=-1)  # each (..., width), broadcasting against x
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)  # (..., width)


class OutputLayer(nn.Module):
    """Modulated layer norm and a linear read-out that starts at zero."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, channels)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation.chunk(2, dim=-1)
        return self.linear(self.norm(x) * (1 + scale) + shift)  # (..., channels)


class VelocityMLP(nn.Module):
    """``v(x, t)`` of the flow ``dx/dt = v`` (Eq. 1), or ``v(x, t | cond)`` as a generator's head.

    At 32 channels, width 1024 and depth 6 it has the paper's 34,978,848 parameters
    (35,766,304 when conditioned on 768 channels).

    Args:
        channels: size C of the tokens.
        width: hidden width W.
        depth: number of residual blocks.
        cond_channels: size K of the condition; 0 for an unconditional flow.
        generator: draws the initial weights; without it, PyTorch's global generator does.
    """

    def __init__(
        self,
        channels: int,
        width: int = 1024,
        depth: int = 6,
        cond_channels: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.width, self.depth, self.cond_channels = channels, width, depth, cond_channels
        self.input = nn.Linear(channels, width)
        self.time_embed = nn.Sequential(nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.cond_embed = nn.Linear(cond_channels, width) if cond_channels else None
        self.blocks = nn.ModuleList(AdaLNBlock(width) for _ in range(depth))
        self.output = OutputLayer(width, channels)
        self._initialise(generator)

    def _initialise(self, generator: torch.Generator | None) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
        for layer in (self.time_embed[0], self.time_embed[2]):
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
        for modulation in [block.modulation for block in self.blocks] + [self.output.modulation]:
            nn.init.zeros_(modulation[-1].weight)
        nn.init.zeros_(self.output.linear.weight)

    @property
    def end_layers(self) -> list[nn.Linear]:
        """Those that read tokens, times and the condition, and the one that writes the velocity."""
        first = [self.input, self.time_embed[0], self.output.linear]
        return [*first, self.cond_embed] if self.cond_embed is not None else first

    @property
    def replayed_parts(self) -> list[nn.Module]:
        """What ``train.cuda_graphs`` replays: the whole network, where its times are a tensor."""
        return [self]

    @property
    def sizes(self) -> dict[str, int]:
        """The constructor's arguments, from which the network can be built again."""
        return {
            "channels": self.channels,
            "width": self.width,
            "depth": self.depth,
            "cond_channels": self.cond_channels,
        }

    def embed_condition(self, cond: Tensor) -> Tensor:
        """``(..., K) -> (..., W)``: the part of the conditioning that does not depend on time, for reuse over many times."""
        if self.cond_embed is None:
            raise ValueError("this velocity network is unconditional: it takes no cond")
        return self.cond_embed(cond)

    def modulations(self, t: Tensor, embedded_cond: Tensor | None = None) -> list[Tensor]:
        """The adaLN modulation of every layer, computed once per element of ``t`` (and of the condition, if there is one).

        Args:
            t: times, any shape that broadcasts against the tokens' leading dimensions.
            embedded_cond: :meth:`embed_condition`'s output.

        Returns:
            One ``(..., 3 W)`` tensor per block and one ``(..., 2 W)`` for the output layer.
        """
        code = self.time_embed(time_features(t))  # (..., W)
        if embedded_cond is not None:
            code = code + embedded_cond
        return [block.modulation(code) for block in self.blocks] + [self.output.modulation(code)]

    def velocity(self, x: Tensor, modulations: list[Tensor]) -> Tensor:
        """Velocity at ``x (..., C)`` under :meth:`modulations` that broadcast against it, ``(..., C)``."""
        h = self.input(x)  # (..., W)
        for block, modulation in zip(self.blocks, modulations):
            h = block(h, modulation)  # (..., W)
        return self.output(h, modulations[-1])  # (..., C)

    def forward(self, x: Tensor, t: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Velocity at ``x (..., C)`` and time ``t``.

        Args:
            x: tokens ``(..., C)``.
            t: times that broadcast against ``x``'s leading dimensions: a scalar, ``(..., 1)`` for one time
                per group of tokens, or ``(...)`` for one per token. 0 is noise, 1 is data.
            cond: ``(..., K)``, leading dimensions broadcasting likewise; required if and only if the network is conditional.
        """
        if (cond is None) != (self.cond_embed is None):
            raise ValueError(
                "cond is missing" if cond is None else "this velocity network is unconditional: it takes no cond"
            )
        t = torch.as_tensor(t, device=x.device, dtype=torch.float32)
        t = t.reshape((1,) * (x.dim() - 1 - t.dim()) + t.shape)
        return self.velocity(x, self.modulations(t, None if cond is None else self.embed_condition(cond)))
