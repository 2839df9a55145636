"""Soft product quantisation: every share of a token's channels is softly assigned to a codebook of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from flowprior.precision import full_precision
from flowprior.run.config import option
from tokenizer.latent_maps.codebooks import CodebooksConfig


@dataclass
class SoftCodebookConfig(CodebooksConfig):
    """Latents become convex combinations of codewords."""

    codebooks: int = option(4, "number of codebooks, each over its equal share of the channels", least=1)

    def check(self, tokens: int, channels: int) -> None:
        """A ``ValueError`` for channels that do not divide into the codebooks."""
        if channels % self.codebooks:
            raise ValueError(f"{channels} channels do not divide into {self.codebooks} codebooks")

    def build(self, tokens: int, channels: int) -> SoftCodebook:
        return SoftCodebook(self, tokens, channels)


class SoftCodebook(nn.Module):
    """Each share z of a latent's channels becomes ``sum_k softmax_k(<z, c_k> / temperature) c_k``, with z and c_k of unit length."""

    def __init__(self, config: SoftCodebookConfig, tokens: int, channels: int) -> None:
        super().__init__()
        config.check(tokens, channels)
        self.temperature = config.temperature
        self.codewords = nn.Parameter(torch.randn(config.codebooks, config.size, channels // config.codebooks))

    def forward(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``(B, T, C)`` to ``(B, T, C)``.

        Returns:
            The soft latents, and ``assignment_entropy`` (nats, a mean over tokens and codebooks) with ``assignment_mean``
            ``(codebooks, size)``, the mean assignment over the batch's tokens.
        """
        with full_precision(latents.device):  # cosines over a temperature of 0.07 want all their digits
            codewords = F.normalize(self.codewords.float(), dim=-1)  # (K, S, C / K)
            parts = rearrange(latents.float(), "b t (k c) -> b t k c", k=len(codewords))  # (B, T, K, C / K)
            parts = F.normalize(parts, dim=-1)
            log_share = (torch.einsum("btkc,ksc->btks", parts, codewords) / self.temperature).log_softmax(-1)
            share = log_share.exp()  # (B, T, K, S)
            soft = rearrange(torch.einsum("btks,ksc->btkc", share, codewords), "b t k c -> b t (k c)")
        metrics = {"assignment_entropy": -(share * log_share).sum(-1).mean(), "assignment_mean": share.mean((0, 1))}
        return soft, metrics
