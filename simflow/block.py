"""A block of the flow: every token is mapped affinely, with parameters that a causal transformer makes of those before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flowprior.precision import full_precision
from simflow.guidance import Affine, Guidance
from simflow.layer import CausalLayer, KeyValueCache


class AffineBlock(nn.Module):
    """``z_i = (x_i - mean_i) exp(-log_scale_i)`` with ``mean_i`` and ``log_scale_i`` functions of ``x_j``, j < i, and of the class
    (TarFlow, arXiv 2412.06329).

    In the paper the first token stays as it is. Here a learned start token is read for it, so that its parameters are free as well and may
    depend on the class. A fresh block is the identity.

    Args:
        tokens, channels: T and C.
        width, depth, heads: of the transformer.
        num_classes: of labels; ``num_classes`` itself stands for a dropped one. 0: the block does not see the class.
        backwards: the last token comes first.
        dropout: of the transformer.
        token_std: of start token, positions and classes at initialisation.

    Attributes:
        recompute: compute a layer again in the backward pass instead of keeping its activations.
    """

    recompute = False

    def __init__(
        self,
        tokens: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        *,
        num_classes: int = 0,
        backwards: bool = False,
        dropout: float = 0.0,
        token_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.tokens, self.num_classes, self.backwards = tokens, num_classes, backwards
        self.start = nn.Parameter(torch.randn(1, 1, width) * token_std)
        self.positions = nn.Parameter(torch.randn(1, tokens, width) * token_std)
        self.class_embed = nn.Embedding(num_classes + 1, width) if num_classes else None
        if self.class_embed is not None:
            nn.init.normal_(self.class_embed.weight, std=token_std)
        self.embed = nn.Linear(channels, width)
        self.layers = nn.ModuleList(CausalLayer(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.to_affine = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.to_affine.weight)
        nn.init.zeros_(self.to_affine.bias)

    @property
    def end_layers(self) -> list[nn.Linear]:
        """The one that reads tokens, and the one that writes their means and scales."""
        return [self.embed, self.to_affine]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Towards noise.

        Args:
            x: ``(B, T, C)``.
            labels: ``(B,)``, where the block sees the class.

        Returns:
            z ``(B, T, C)``, token i at the place of token i, and the log-determinant of its Jacobian ``(B,)`` in nats.
        """
        x = self._in_order(x)
        mean, log_scale = self.affine(x, labels)  # (B, T, C)
        z = (x - mean) * (-log_scale).exp()
        return self._in_order(z), -log_scale.sum((1, 2))

    def affine(self, x: Tensor, labels: Tensor | None = None) -> Affine:
        """The parameters of all tokens at once, ``(B, T, C)``, for ``x (B, T, C)`` in the block's order."""
        before = torch.cat([self.start.expand(len(x), -1, -1), self.embed(x[:, :-1])], dim=1)  # (B, T, W)
        h = before + self.positions + self._class_code(labels)
        recompute = self.recompute and torch.is_grad_enabled()
        for layer in self.layers:
            h = checkpoint(layer, h, use_reentrant=False) if recompute else layer(h)  # (B, T, W)
        return self._read(h, x.dtype)

    def inverse(self, z: Tensor, labels: Tensor | None = None, guidance: Guidance | None = None) -> Tensor:
        """Back from noise: x ``(B, T, C)`` for ``z (B, T, C)``, token by token.

        Args:
            z: noise, or what a later block's inverse returned.
            labels: ``(B,)``, where the block sees the class.
            guidance: combines the parameters with and without the class; a block that sees none leaves it out.
        """
        z, guided = self._in_order(z), guidance is not None and self.class_embed is not None
        if guided:
            labels = torch.cat([labels, torch.full_like(labels, self.num_classes)])  # (2 B,)
        code, caches = self._class_code(labels), [KeyValueCache(self.tokens) for _ in self.layers]
        h, x = self.start.expand(len(z), -1, -1), []
        for i in range(self.tokens):
            if i:
                h = self.embed(x[-1])  # (B, 1, W)
            h = (h.repeat(2, 1, 1) if guided else h) + self.positions[:, i : i + 1] + code
            for layer, cache in zip(self.layers, caches):
                h = layer.step(h, cache)
            affine = self._read(h, z.dtype)  # (B or 2 B, 1, C)
            if guided:
                affine = guidance(*(Affine(*half) for half in zip(*(part.chunk(2) for part in affine))))
            x.append(z[:, i : i + 1] * affine.log_scale.exp() + affine.mean)  # (B, 1, C)
        return self._in_order(torch.cat(x, dim=1))

    def _in_order(self, x: Tensor) -> Tensor:
        """From the tokens' own order to the block's, and back."""
        return x.flip(1) if self.backwards else x

    def _class_code(self, labels: Tensor | None) -> Tensor | float:
        return 0.0 if self.class_embed is None else self.class_embed(labels).unsqueeze(1)  # (B, 1, W)

    def _read(self, h: Tensor, dtype: torch.dtype) -> Affine:
        # Never in bfloat16, whose steps are wider than what the flow resolves.
        with full_precision(h.device):
            return Affine(*self.to_affine(self.norm(h).to(dtype)).chunk(2, dim=-1))
