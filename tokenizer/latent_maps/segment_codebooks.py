"""Soft assignment of whole tokens to codebooks of segments of the sequence: SoftVQ-VAE's latents (Chen et al. 2024, arXiv 2412.10958)."""

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
class SegmentCodebooksConfig(CodebooksConfig):
    """Tokens become convex combinations of the codewords of their segment."""

    codebooks: int = option(
        4, "number of codebooks, each over an equal segment of the tokens, at the latents' full width", least=1
    )

    def check(self, tokens: int, channels: int) -> None:
        """A ``ValueError`` for tokens that do not divide into the codebooks."""
        if tokens % self.codebooks:
            raise ValueError(
                f"{tokens} tokens do not divide into segments for {self.codebooks} codebooks (soft_pq has codebooks of channels)"
            )

    def build(self, tokens: int, channels: int) -> SegmentCodebooks:
        return SegmentCodebooks(self, tokens, channels)


class SegmentCodebooks(nn.Module):
    """Token z of segment k becomes ``sum_s softmax_s(<z, sg[c_ks]> / temperature) c_ks``, with z and c_ks of unit length.

    ``sg`` stops the gradient: a codeword learns from where it is mixed into a latent, not from how it is chosen.

    Args:
        config: see the class.
        tokens, channels: T and C of the latents.
    """

    def __init__(self, config: SegmentCodebooksConfig, tokens: int, channels: int) -> None:
        super().__init__()
        config.check(tokens, channels)
        self.temperature = config.temperature
        self.codewords = nn.Parameter(torch.randn(config.codebooks, config.size, channels))

    def forward(self, latents: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """``(B, T, C)`` to ``(B, T, C)``.

        Returns:
            The soft latents, and ``codeword_similarity (B, T, size)``, every token's cosines with the codewords of its segment.
        """
        with full_precision(latents.device):  # cosines over a temperature of 0.07 want all their digits
            words = F.normalize(self.codewords.float(), dim=-1)  # (K, S, C)
            parts = rearrange(F.normalize(latents.float(), dim=-1), "b (k t) c -> b k t c", k=len(words))
            similarity = torch.einsum("bktc,ksc->bkts", parts, words.detach())  # (B, K, T / K, S)
            share = (similarity / self.temperature).softmax(-1)
            soft = rearrange(torch.einsum("bkts,ksc->bktc", share, words), "b k t c -> b (k t) c")
        return soft, {"codeword_similarity": rearrange(similarity, "b k t s -> b (k t) s")}
