"""The flow: blocks that each map all tokens, with exact likelihood in one direction and exact samples in the other."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from simflow.block import AffineBlock
from simflow.guidance import Guidance


class AutoregressiveFlow(nn.Module):
    """A normalizing flow over tokens ``(T, C)``, from data to standard normal noise.

    Blocks of equal depth are TarFlow's (arXiv 2412.06329). STARFlow (arXiv 2506.06276) puts most layers into the block nearest to the noise,
    which is the last here and the first in sampling: it is a language model with Gaussian tokens, and the few layers of the others carry
    its tokens to the data. The order of tokens is reversed from block to block; the last block has their own. In STARFlow only the deep
    block sees the class.

    A fresh flow is the identity: ``log_prob`` is that of a standard normal.

    Args:
        tokens, channels: T and C.
        width, heads: of all transformers.
        depths: layers of each block, the one nearest to the data first.
        num_classes: of labels; ``num_classes`` itself stands for a dropped one. 0: a flow without classes.
        conditioned: the blocks that see the class.
        dropout, token_std: as of :class:`~simflow.block.AffineBlock`.
    """

    def __init__(
        self,
        tokens: int,
        channels: int,
        width: int,
        depths: tuple[int, ...],
        heads: int,
        *,
        num_classes: int = 0,
        conditioned: Literal["all", "last"] = "all",
        dropout: float = 0.0,
        token_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.tokens, self.channels, self.num_classes = tokens, channels, num_classes
        last = len(depths) - 1
        self.blocks = nn.ModuleList(
            AffineBlock(
                tokens,
                channels,
                width,
                depth,
                heads,
                num_classes=num_classes if conditioned == "all" or number == last else 0,
                backwards=(last - number) % 2 == 1,
                dropout=dropout,
                token_std=token_std,
            )
            for number, depth in enumerate(depths)
        )

    @property
    def replayed_parts(self) -> list[nn.Module]:
        """What ``train.cuda_graphs`` replays: the whole flow, where labels are passed."""
        return [self]

    def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data ``(B, T, C)`` to noise ``(B, T, C)``, and the log-determinant of the Jacobian ``(B,)``, in nats."""
        log_det = x.new_zeros(len(x))
        for block in self.blocks:
            x, of_block = block(x, labels)
            log_det = log_det + of_block
        return x, log_det

    def inverse(self, noise: Tensor, labels: Tensor | None = None, guidance: Guidance | None = None) -> Tensor:
        """Noise ``(B, T, C)`` to data ``(B, T, C)``; guidance acts in the blocks that see the class."""
        x = noise
        for block in reversed(self.blocks):
            x = block.inverse(x, labels, guidance)
        return x

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The exact log-density of every sample of ``x (B, T, C)``: ``(B,)``, in nats."""
        noise, log_det = self(x, labels)
        dimensions = self.tokens * self.channels
        return log_det - 0.5 * (noise.square().sum((1, 2)) + dimensions * math.log(2 * math.pi))

    def bits_per_dimension(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The negative log-density over the number of dimensions, in bits: ``(B,)``. Continuous data may have fewer than none."""
        return -self.log_prob(x, labels) / (self.tokens * self.channels * math.log(2))

    def denoised(self, x: Tensor, labels: Tensor | None, noise_std: float) -> Tensor:
        """The expected clean sample given a noisy one, ``x + noise_std^2 grad log p(x)``, where p is the density of samples with noise of
        that standard deviation (TarFlow): what the flow has learned when it was trained on such."""
        with torch.inference_mode(False), torch.enable_grad():
            labels = labels if labels is None else labels.clone()  # what inference_mode made has no part in derivatives
            x = x.detach().clone().requires_grad_()
            [score] = torch.autograd.grad(self.log_prob(x, labels).sum(), x)
        return (x + noise_std**2 * score).detach()
