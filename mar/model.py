"""MAR (Li et al., 2024): a masked encoder-decoder over latent tokens, and a flow that draws each token given the decoder's output."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import draw_path_of_step
from flowprior.flow.times import TimeConfig
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import option
from flowprior.training.randomness import StepRandom
from generation.generator import Generator
from generation.sizes import apply_size
from mar.attention import block_at, gather_tokens
from mar.flow_map import FlowMap
from mar.guided import GuidedTransformer
from mar.masking import masked_count
from mar.sampler import SamplerConfig, sample_latents

# Of Li et al. 2024 (arXiv 2406.11838) but for the head, whose MLP is the flow prior's; MAR-B with fewer buffer tokens, whose arithmetic they
# are a third of at 64 latent tokens; and one for the embedded digits.
SIZES = {
    "mar_base": dict(width=768, encoder_depth=12, decoder_depth=12, heads=12, buffer_tokens=64, head_width=1024, head_depth=6),
    "mar_efficient": dict(width=768, encoder_depth=12, decoder_depth=12, heads=12, buffer_tokens=16, head_width=1024, head_depth=6),
    "mar_large": dict(width=1024, encoder_depth=16, decoder_depth=16, heads=16, buffer_tokens=64, head_width=1280, head_depth=8),
    "mar_huge": dict(width=1280, encoder_depth=20, decoder_depth=20, heads=16, buffer_tokens=64, head_width=1536, head_depth=12),
    "mar_digits": dict(width=128, encoder_depth=3, decoder_depth=3, heads=4, buffer_tokens=4, head_width=128, head_depth=3),
}  # fmt: skip

# Of runs and saved generators that state none: timm's blocks had one eps for all of their norms, 1e-6 since timm 1.0.19.
NORMS_BEFORE = {"norm_eps": 1e-6, "qk_norm_eps": 1e-6}


@dataclass
class MARConfig:
    """Sizes and training choices of MAR; the defaults are MAR-B's."""

    size: str = option("", f"one of {', '.join(SIZES)}: stands for the seven numbers below")
    width: int = option(0, "width of the transformer; 0, here and in the next six: as size says, or MAR-B's")
    encoder_depth: int = option(0, "blocks of the encoder")
    decoder_depth: int = option(0, "blocks of the decoder")
    heads: int = option(0, "heads of attention; queries and keys are normalised")
    buffer_tokens: int = option(0, "tokens that carry the class through the transformer")
    head_width: int = option(0, "width of the flow head")
    head_depth: int = option(0, "residual blocks of the flow head")
    pairs: int = option(4, "(t, noise) pairs per masked token")
    pairs_share_time: bool = option(
        False,
        "one time for the pairs of a token, whose noises are opposite two by two: the head's modulation, most of its arithmetic, is made once",
    )
    times: TimeConfig = option(TimeConfig, "")
    label_drop: float = option(0.1, "share of labels that are dropped, for classifier-free guidance")
    dropout: float = option(0.1, "dropout of attention and projections")
    mask_ratio_min: float = option(0.7, "smallest share of tokens that is masked in training; it is drawn once a step")
    token_std: float = option(
        0.02, "std of tokens and positions at initialisation; a larger one helps a small model on a small budget"
    )
    mask_ratio_std: float = option(0.25, "std of the normal around 1 that the share is drawn from, truncated")
    mask_counts: int = option(
        0,
        "mask one of at most so many numbers of tokens, evenly spaced, with the same mean, so that a step has one of few shapes; 0: any number",
    )
    decay_head: bool = option(
        False, "let weight decay reach the flow head, which the published recipe exempts from it", before=True
    )
    skip_unread: bool = option(
        False,
        "in training, leave out of the last block what no token's loss reads; changes dropout's draws and rounding only",
    )
    norm_eps: float = option(
        1e-6,
        "eps of the transformer's norms but those of queries and keys; the flow head's is 1e-6",
        before=NORMS_BEFORE["norm_eps"],
    )
    qk_norm_eps: float = option(
        1e-5, "eps of the norms of queries and keys, as published", before=NORMS_BEFORE["qk_norm_eps"]
    )
    sampler: SamplerConfig = option(SamplerConfig, "", changes_result=False)

    def __post_init__(self) -> None:
        apply_size(self, SIZES, "mar_base", "model.mar")
        sizes = (
            self.width,
            self.encoder_depth,
            self.decoder_depth,
            self.heads,
            self.buffer_tokens,
            self.head_width,
            self.head_depth,
        )
        if min(*sizes, self.pairs) < 1:
            raise ValueError("widths, depths, heads, buffer_tokens and pairs are at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")
        if not (
            0 <= self.label_drop < 1
            and 0 <= self.dropout < 1
            and 0 < self.mask_ratio_min <= 1
            and self.mask_ratio_std > 0
        ):
            raise ValueError("label_drop and dropout lie in [0, 1), mask_ratio_min in (0, 1], mask_ratio_std above 0")
        if self.mask_counts < 0 or self.mask_counts == 1:
            raise ValueError(f"mask_counts is 0 (any number of masked tokens) or at least 2, not {self.mask_counts}")
        if not (0 < self.norm_eps < 1 and 0 < self.qk_norm_eps < 1):
            raise ValueError("norm_eps and qk_norm_eps lie in (0, 1)")

    def build(self, tokens: int, channels: int, num_classes: int) -> MAR:
        return MAR(self, tokens, channels, num_classes)


class MAR(Generator):
    """Masked autoregressive generator with a flow head.

    Args:
        config: see the class.
        tokens, channels: T and C of the latents.
        num_classes: labels are 0 to num_classes - 1; num_classes itself stands for a dropped label.
    """

    def __init__(self, config: MARConfig, tokens: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.tokens, self.channels, self.num_classes = config, tokens, channels, num_classes
        width, buffer = config.width, config.buffer_tokens
        self.class_embed = nn.Embedding(num_classes + 1, width)
        self.embed = nn.Linear(channels, width)
        self.embed_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.encoder_positions = nn.Parameter(torch.empty(1, buffer + tokens, width))
        self.encoder = self._blocks(config.encoder_depth)
        self.encoder_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.decoder_positions = nn.Parameter(torch.empty(1, buffer + tokens, width))
        self.decoder = self._blocks(config.decoder_depth)
        self.decoder_norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.head_positions = nn.Parameter(torch.empty(1, tokens, width))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for parameter in (
            self.class_embed.weight,
            self.encoder_positions,
            self.mask_token,
            self.decoder_positions,
            self.head_positions,
        ):
            nn.init.normal_(parameter, std=config.token_std)
        self.head = VelocityMLP(channels, config.head_width, config.head_depth, cond_channels=width)
        self.scale_embed: nn.Module | None = None  # of a copy that is guided by its input
        # Of the trained model, for sampling.
        self.flow_map: FlowMap | None = None
        self.guided: GuidedTransformer | None = None

    @property
    def drops_labels(self) -> bool:
        return self.config.label_drop > 0

    def _blocks(self, depth: int) -> nn.Sequential:
        c = self.config
        norm = partial(nn.LayerNorm, eps=c.norm_eps)
        drops = {"proj_drop": c.dropout, "attn_drop": c.dropout}
        blocks = [Block(c.width, c.heads, qkv_bias=True, qk_norm=True, norm_layer=norm, **drops) for _ in range(depth)]
        for block in blocks:
            block.attn.q_norm.eps = block.attn.k_norm.eps = c.qk_norm_eps
        return nn.Sequential(*blocks)

    @property
    def no_decay(self) -> Iterable[nn.Parameter]:
        """The flow head, as published, unless ``decay_head`` says otherwise."""
        return () if self.config.decay_head else self.head.parameters()

    @property
    def end_layers(self) -> list[nn.Linear]:
        """The one that reads tokens; the flow head names its own."""
        return [self.embed]

    @property
    def compiled_parts(self) -> list[nn.Module]:
        """What ``train.compile`` and ``sample.compile`` compile: block by block, since blocks are also used one at a time.

        Samplers call the parts of the head, which are not compiled then; ``cuda_graphs`` is for these.
        """
        guided = [] if self.guided is None else self.guided.transformer_blocks
        return [*self.encoder, *self.decoder, self.head, *guided]

    @property
    def replayed_parts(self) -> list[nn.Module]:
        """What ``train.cuda_graphs`` replays beside the flow head; with ``skip_unread`` the decoder is called block by block, and is not replayed."""
        return [self.encoder, self.decoder]

    def condition(
        self,
        latents: Tensor,
        labels: Tensor,
        known: Tensor,
        wanted: Tensor,
        skip_unread: bool = False,
        scale: Tensor | None = None,
    ) -> Tensor:
        """What the flow head is told about the tokens at ``wanted``, given those at ``known``.

        Args:
            latents: normalised ``(B, T, C)``; only the known positions are read.
            labels: ``(B,)``.
            known: positions ``(B, k)``; k may be 0.
            wanted: positions ``(B, n)``.
            skip_unread: see :meth:`decode`.
            scale: of the guidance, ``(B, 1)``; read where there is an embedding of it.

        Returns:
            ``(B, n, width)``.
        """
        return self.decode(self.encode(latents, labels, known, scale), known, wanted, skip_unread)

    def encode(self, latents: Tensor, labels: Tensor, known: Tensor, scale: Tensor | None = None) -> Tensor:
        """The encoder's output ``(B, buffer + k, W)``; arguments as for :meth:`condition`."""
        return self.encoder_norm(self.encoder(self.encoder_input(latents, labels, known, scale)))

    def encoder_input(self, latents: Tensor, labels: Tensor, known: Tensor, scale: Tensor | None = None) -> Tensor:
        """The class's buffer tokens and the known latents, ``(B, buffer + k, W)``; arguments as for :meth:`condition`."""
        tokens = self.embed(gather_tokens(latents, known))  # (B, k, W)
        buffer = self.config.buffer_tokens
        positions = self.encoder_positions.expand(len(labels), -1, -1)
        classes = self.class_embed(labels)  # (B, W)
        if self.scale_embed is not None and scale is not None:
            classes = classes + self.scale_embed(scale - 1)
        classes = classes.unsqueeze(1).expand(-1, buffer, -1)  # (B, buffer, W)
        x = torch.cat([classes + positions[:, :buffer], tokens + gather_tokens(positions[:, buffer:], known)], dim=1)
        return self.embed_norm(x)

    def decode(self, encoded: Tensor, known: Tensor, wanted: Tensor, skip_unread: bool = False) -> Tensor:
        """The encoder's ``(B, buffer + k, W)`` among mask tokens, through the decoder, read at ``wanted``: ``(B, n, W)``.

        With ``skip_unread`` the last block makes no outputs for the other positions; the result is the same but for rounding.
        """
        buffer, x = self.config.buffer_tokens, self.decoder_input(encoded, known)  # (B, buffer + T, W)
        if skip_unread:
            for block in self.decoder[:-1]:
                x = block(x)  # (B, buffer + T, W)
            return self.read_out(block_at(self.decoder[-1], x, wanted + buffer), wanted)
        x = self.decoder_norm(self.decoder(x))[:, buffer:]  # (B, T, W)
        return gather_tokens(x + self.head_positions, wanted)  # (B, n, W)

    def decoder_input(self, encoded: Tensor, known: Tensor) -> Tensor:
        """The encoder's output among mask tokens, ``(B, buffer + T, W)``."""
        buffer = self.config.buffer_tokens
        x = self.decoder_embed(encoded)  # (B, buffer + k, W)
        full = self.mask_token.to(x.dtype).expand(len(x), self.tokens, -1)
        full = full.scatter(1, known.unsqueeze(-1).expand(-1, -1, x.shape[-1]), x[:, buffer:])  # (B, T, W)
        return torch.cat([x[:, :buffer], full], dim=1) + self.decoder_positions

    def read_out(self, x: Tensor, wanted: Tensor) -> Tensor:
        """The head's condition ``(B, n, W)`` from the last block's outputs ``x (B, n, W)`` at ``wanted (B, n)``."""
        return self.decoder_norm(x) + gather_tokens(self.head_positions.expand(len(x), -1, -1), wanted)

    def loss(self, latents: Tensor, labels: Tensor, random: StepRandom) -> Tensor:
        """Flow matching of the masked tokens given the others; the head sees masked tokens only."""
        config, images = self.config, len(latents)
        count = masked_count(config, self.tokens, random)
        order = random.uniform("order", images, self.tokens).argsort(dim=1)  # (B, T)
        masked, known = order[:, :count], order[:, count:]
        labels = torch.where(random.uniform("label drop", images) < config.label_drop, self.num_classes, labels)
        cond = self.condition(latents, labels, known, masked, config.skip_unread)  # (B, n, W)
        data = gather_tokens(latents, masked)  # (B, n, C)
        draw = draw_path_of_step(random, data, pairs=config.pairs, pairs_share_time=config.pairs_share_time)
        draw = draw._replace(t=config.times.quantile(draw.t))
        return flow_matching_loss(self.head, data, draw, cond)

    @property
    def distilled(self) -> FlowMap | GuidedTransformer | None:
        """What the sampler asks for in place of the head; nothing until it is there, since it comes after training."""
        if self.config.sampler.head == "flow":
            return None
        return self.guided if self.config.sampler.one_pass else self.flow_map

    def check_guidance(self, cfg: float) -> None:
        super().check_guidance(cfg)
        if self.distilled is not None:
            self.distilled.check_guidance(cfg)

    def sample(self, labels: Tensor, seeds: list[int], cfg: float) -> Tensor:
        self.check_guidance(cfg)
        sampler = self.config.sampler
        if self.distilled is None:
            sampler = sampler.of_flow()
        return sample_latents(self, labels, seeds, cfg, sampler)
