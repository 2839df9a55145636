"""SiT (Ma et al., 2024): a transformer that predicts the velocity of all latent tokens at a time, given the class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from flowprior.flow.path import draw_path_of_step
from flowprior.flow.times import TimeConfig
from flowprior.flow.velocity import TIME_FREQUENCIES, time_features
from flowprior.run.config import Section, option
from flowprior.training.randomness import StepRandom
from generation.generator import Generator
from generation.sizes import apply_size
from sit.blocks import Block, OutputLayer, sinusoids
from sit.sampler import SamplerConfig, sample_latents
from sit.time_shift import shift_factor, shifted

# Of SiT (arXiv 2401.08740) and DiT; and one for the embedded digits.
SIZES = {
    "S": dict(width=384, depth=12, heads=6),
    "B": dict(width=768, depth=12, heads=12),
    "L": dict(width=1024, depth=24, heads=16),
    "XL": dict(width=1152, depth=28, heads=16),
    "digits": dict(width=128, depth=6, heads=4),
}


@dataclass
class SiTConfig(Section):
    """Sizes and training choices of SiT; the defaults are SiT-B's."""

    size: str = option("", f"one of {', '.join(SIZES)}: stands for the three numbers below")
    width: int = option(0, "width of the transformer; 0, here and in the next two: as size says, or SiT-B's", least=1)
    depth: int = option(0, "blocks", least=1)
    heads: int = option(0, "heads of attention", least=1)
    block: Literal["plain", "lightning"] = option(
        "plain", "DiT's block, or lightning: LightningDiT's SwiGLU, RMS norm, and norm of queries and keys"
    )
    positions: Literal["sinusoidal", "learned"] = option("sinusoidal", "positions of the tokens: fixed or learned")
    prediction: Literal["velocity", "data"] = option(
        "velocity", "what the network predicts: the velocity, or the data; the loss is on the velocity either way"
    )
    prediction_clip: float = option(
        0.05, "prediction=data: the velocity divides by 1 - t, and by this where that is smaller"
    )
    pairs: int = option(1, "(t, noise) pairs per image", least=1)
    times: TimeConfig = option(TimeConfig, "")
    time_shift: str = option(
        "1", "move training times towards noise by this factor; auto: sqrt(tokens x channels / 4096); 1 leaves them"
    )
    label_drop: float = option(0.1, "share of labels that are dropped, for classifier-free guidance")
    sampler: SamplerConfig = option(SamplerConfig, "", changes_result=False)

    def __post_init__(self) -> None:
        apply_size(self, SIZES, "B", "model.sit")
        super().__post_init__()
        if self.width % self.heads or self.width % 2:
            raise ValueError(f"width {self.width} is odd or does not divide into {self.heads} heads")
        if not (0 <= self.label_drop < 1 and 0 < self.prediction_clip < 1):
            raise ValueError("label_drop lies in [0, 1), prediction_clip in (0, 1)")
        shift_factor(self.time_shift, 1)

    def build(self, tokens: int, channels: int, num_classes: int) -> SiT:
        return SiT(self, tokens, channels, num_classes)


class SiT(Generator):
    """Diffusion transformer on latent tokens with the project's straight path.

    Args:
        config: see the class.
        tokens, channels: T and C of the latents.
        num_classes: labels are 0 to num_classes - 1; num_classes itself stands for a dropped label.
    """

    def __init__(self, config: SiTConfig, tokens: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.tokens, self.channels, self.num_classes = config, tokens, channels, num_classes
        width = config.width
        self.embed = nn.Linear(channels, width)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(tokens, width))
        else:
            self.register_buffer("positions", sinusoids(tokens, width), persistent=False)
        self.time_embed = nn.Sequential(nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.class_embed = nn.Embedding(num_classes + 1, width)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.block) for _ in range(config.depth))
        self.output = OutputLayer(width, channels, config.block)
        self._initialise()

    @property
    def drops_labels(self) -> bool:
        return self.config.label_drop > 0

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        small = [self.class_embed.weight, self.time_embed[0].weight, self.time_embed[2].weight]
        for weight in [*small, self.positions] if self.config.positions == "learned" else small:
            nn.init.normal_(weight, std=0.02)
        for modulation in [block.modulation for block in self.blocks] + [self.output.modulation]:
            nn.init.zeros_(modulation[-1].weight)
        nn.init.zeros_(self.output.linear.weight)

    @property
    def end_layers(self) -> list[nn.Linear]:
        """Those that read tokens and times, and the one that writes the prediction."""
        return [self.embed, self.time_embed[0], self.output.linear]

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """What ``train.compile`` and ``sample.compile`` compile: block by block."""
        return [*self.blocks]

    @property
    def replayed_parts(self) -> list[nn.Module]:
        """What ``train.cuda_graphs`` replays: the whole network."""
        return [self]

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """What the network predicts at the points ``x (B, T, C)`` of the path, times ``t (B,)`` and ``labels (B,)``: ``(B, T, C)``."""
        code = self.time_embed(time_features(t)) + self.class_embed(labels)  # (B, W)
        x = self.embed(x) + self.positions  # (B, T, W)
        for block in self.blocks:
            x = block(x, code)  # (B, T, W)
        return self.output(x, code)  # (B, T, C)

    def velocity(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The predicted velocity, float32; arguments as for :meth:`forward`."""
        predicted = self(x, t, labels).float()
        return (predicted - x) / self._time_left(t) if self.config.prediction == "data" else predicted

    def _time_left(self, t: Tensor) -> Tensor:
        """``1 - t``, from below bounded by ``prediction_clip``, ``(B, 1, 1)``."""
        return (1 - t).clamp_min(self.config.prediction_clip)[:, None, None]

    def loss(self, latents: Tensor, labels: Tensor, random: StepRandom) -> Tensor:
        """``E || v(x_t, t) - (x1 - x0) ||^2``, divided by tokens and channels, with one time for all tokens of an image.

        With ``prediction=data`` the same, of ``v = (x - x_t) / (1 - t)`` from the predicted data x (JiT, arXiv 2511.13720): it is
        ``|| x - x1 ||^2 / (1 - t)^2``, whose divisor is bounded by ``prediction_clip``.
        """
        config, pairs = self.config, self.config.pairs
        dropped = random.uniform("label drop", len(latents), pairs).flatten() < config.label_drop  # (B P,)
        labels = torch.where(dropped, self.num_classes, labels.repeat_interleave(pairs))
        draw = draw_path_of_step(random, latents, pairs=pairs, group_size=self.tokens)  # one time for all tokens
        t = config.times.quantile(draw.t)  # (B, P, 1)
        t = shifted(t, shift_factor(config.time_shift, self.tokens * self.channels))
        point = draw._replace(t=t).sample(latents)  # (B, P, 1, T, C)
        x_t, velocity, t = point.x_t.flatten(0, 2), point.velocity.flatten(0, 2), t.flatten()
        predicted = self(x_t, t, labels).float()  # (B P, T, C)
        if config.prediction == "data":
            data = latents.float().repeat_interleave(pairs, 0)
            return ((predicted - data) / self._time_left(t)).square().mean()
        return (predicted - velocity).square().mean()

    def sample(self, labels: Tensor, seeds: list[int], cfg: float) -> Tensor:
        return sample_latents(self, labels, seeds, cfg, self.config.sampler)
