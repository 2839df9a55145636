"""What the transformer tells the head, step by step, and what of it is kept from one step to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mar.attention import KeysValues, block_among, block_with_past, gather_tokens, keys_values

if TYPE_CHECKING:
    from mar.model import MAR
    from mar.sampler import SamplerConfig


class Context:
    """The head's conditions of one group of labels ``(G,)``; G is a multiple of the batch.

    Two parts are kept where the sampler says so. Between renewals of the encoding, known tokens keep their features, and only tokens that
    have become known are encoded, which see the kept ones and not the reverse. Between renewals of the decoding, only these and the wanted
    tokens are decoded, among kept keys and values of all others, mask tokens too: the partial evaluations of ReCAP (Liu et al. 2025,
    "Plug-and-play context feature reuse for efficient masked generation", arXiv 2505.19089).

    Args:
        model: whose transformer it is.
        labels: of the guided half, the unguided half, or both one after the other.
        config: the sampler's.
    """

    def __init__(self, model: MAR, labels: Tensor, config: SamplerConfig) -> None:
        self.model, self.labels, self.config = model, labels, config
        self.scale = torch.empty(0)
        self.past: list[KeysValues | None] = []
        self.encoded = torch.empty(0)
        self.encoded_known = self.encodings = 0
        self.kept: list[KeysValues] = []
        self.decoded_known = self.decodings = 0

    def step(self, latents: Tensor, known: Tensor, wanted: Tensor, scale: float) -> Tensor:
        """The head's condition ``(G, n, W)`` for ``latents (B, T, C)`` at ``known (B, k)``, wanted at ``(B, n)``, and guided by ``scale``."""
        repeat = len(self.labels) // len(latents)
        latents, known, wanted = latents.repeat(repeat, 1, 1), known.repeat(repeat, 1), wanted.repeat(repeat, 1)
        config, self.scale = self.config, latents.new_full((len(self.labels), 1), scale)
        if config.share_first and known.shape[1] == 0:
            labels, place = self.labels.unique(return_inverse=True)
            if len(labels) < len(self.labels):
                return gather_tokens(self._of_classes(labels, latents)[place], wanted)
        if config.encoder_every == 1:
            encoded = self.model.encode(latents, self.labels, known, self.scale)
        else:
            encoded = self._encode(latents, known)
        if config.decoder_every == 1:
            return self.model.decode(encoded, known, wanted, config.skip_unread)
        return self._decode(encoded, known, wanted)

    def _of_classes(self, labels: Tensor, latents: Tensor) -> Tensor:
        """The condition at every position while none is known, once for each of ``labels (L,)``: ``(L, T, W)``."""
        everywhere = torch.arange(self.model.tokens, device=labels.device).expand(len(labels), -1)
        few = len(labels)
        return self.model.condition(latents[:few], labels, everywhere[:, :0], everywhere, scale=self.scale[:few])

    def _encode(self, latents: Tensor, known: Tensor) -> Tensor:
        """The encoder's output ``(G, buffer + k, W)``, of which only tokens new since the last step are computed in most steps."""
        # An encoding of the class alone is not worth keeping, nor counted.
        model, renew = self.model, self.encoded_known == 0 or self.encodings % self.config.encoder_every == 0
        if renew:
            self.past, self.encoded_known = [None] * len(model.encoder), 0
        x = model.encoder_input(latents, self.labels, known[:, self.encoded_known :], self.scale)
        x = x if renew else x[:, model.config.buffer_tokens :]  # (G, new, W)
        for number, block in enumerate(model.encoder):
            x, self.past[number] = block_with_past(block, x, self.past[number])
        x = model.encoder_norm(x)
        self.encoded = x if renew else torch.cat([self.encoded, x], dim=1)  # (G, buffer + k, W)
        self.encoded_known, self.encodings = known.shape[1], self.encodings + (known.shape[1] > 0)
        return self.encoded

    def _decode(self, encoded: Tensor, known: Tensor, wanted: Tensor) -> Tensor:
        """The decoder's output at ``wanted``, ``(G, n, W)``, for which only new and wanted tokens are computed in most steps."""
        model, buffer = self.model, self.model.config.buffer_tokens
        *blocks, last = model.decoder
        x, positions = model.decoder_input(encoded, known), wanted + buffer  # (G, buffer + T, W)
        if self.decoded_known == 0 or self.decodings % self.config.decoder_every == 0:
            self.kept = []
            for block in blocks:
                x, kept = block_with_past(block, x, None)  # (G, buffer + T, W)
                self.kept.append(kept)
            self.kept.append(keys_values(last, x))
            x, _ = block_among(last, gather_tokens(x, positions), positions, self.kept[-1])  # (G, n, W)
        else:
            new = known[:, self.decoded_known :] + buffer
            positions = torch.cat([new, positions], dim=1)
            x = gather_tokens(x, positions)  # (G, new + n, W)
            for number, block in enumerate(model.decoder):
                x, self.kept[number] = block_among(block, x, positions, self.kept[number])
            x = x[:, new.shape[1] :]  # (G, n, W)
        self.decoded_known, self.decodings = known.shape[1], self.decodings + (known.shape[1] > 0)
        return model.read_out(x, wanted)
