"""The published autoencoder's arithmetic, said plainly, under its published names: for small checkpoints in its format."""

from __future__ import annotations

import timm
import torch
from torch import Tensor, nn

IMAGE, PATCH, TOKENS, CHANNELS = 32, 8, 4, 6
NAME, WIDTH = "test_vit", 64
CODEBOOKS, WORDS, TEMPERATURE = 2, 10, 0.07


class Part(nn.Module):
    """A room for names."""


class PublishedAutoencoder(nn.Module):
    """Kinds are ``ae``, ``kl`` and ``softvq``; every parameter is random."""

    def __init__(self, kind: str = "ae") -> None:
        super().__init__()
        self.kind, patches = kind, (IMAGE // PATCH) ** 2
        self.encoder, self.decoder = Part(), Part()
        for part in (self.encoder, self.decoder):
            part.model = timm.create_model(NAME, img_size=IMAGE, patch_size=PATCH, num_classes=0)
            part.latent_pos_embed = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.encoder.latent_tokens = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        self.decoder.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.decoder.to_pixel = Part()
        self.decoder.to_pixel.model = nn.Linear(WIDTH, 3 * PATCH**2)
        self.quant_conv = nn.Linear(WIDTH, CHANNELS * (2 if kind == "kl" else 1))
        self.post_quant_conv = nn.Linear(CHANNELS, WIDTH)
        self.repa_model, self.projection = nn.Linear(3, 3), nn.Linear(3, 3)
        if kind == "softvq":
            self.quantize = Part()
            self.quantize.embedding = nn.Parameter(torch.zeros(CODEBOOKS, WORDS, CHANNELS))
            self.quantize.register_buffer("codebook_used", torch.zeros(7))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)
        self.patches = patches
        self.eval()

    def encode(self, images: Tensor) -> Tensor:
        """Images in [-1, 1], as they are, to latents; of a posterior the mean."""
        vit = self.encoder.model
        x = vit.patch_embed.proj(images).flatten(2).transpose(1, 2)  # (B, N, W)
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
        latent = (self.encoder.latent_tokens + self.encoder.latent_pos_embed).expand(len(x), -1, -1)
        x = torch.cat([x, latent], 1)
        for block in vit.blocks:
            x = block(x)
        code = self.quant_conv(vit.norm(x)[:, -TOKENS:])
        return self.assign(code[..., :CHANNELS])

    def assign(self, code: Tensor) -> Tensor:
        """Token by token: SoftVQ's mixture of the codewords of the token's segment."""
        if self.kind != "softvq":
            return code
        rows = []
        for token in range(TOKENS):
            words = self.quantize.embedding[token * CODEBOOKS // TOKENS]
            words = words / words.norm(dim=-1, keepdim=True)
            z = code[:, token] / code[:, token].norm(dim=-1, keepdim=True)
            rows.append(((z @ words.T) / TEMPERATURE).softmax(-1) @ words)
        return torch.stack(rows, 1)

    def decode(self, latents: Tensor) -> Tensor:
        vit = self.decoder.model
        x = self.decoder.mask_token.expand(len(latents), self.patches, -1)
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x], 1) + vit.pos_embed
        x = torch.cat([x, self.post_quant_conv(latents) + self.decoder.latent_pos_embed], 1)
        for block in vit.blocks:
            x = block(x)
        pixels = self.decoder.to_pixel.model(vit.norm(x)[:, 1 : 1 + self.patches])  # (B, N, 3 p^2)
        images = torch.zeros(len(latents), 3, IMAGE, IMAGE)
        for number in range(self.patches):
            row, column = (PATCH * place for place in divmod(number, IMAGE // PATCH))
            patch = pixels[:, number].view(-1, PATCH, PATCH, 3).permute(0, 3, 1, 2)
            images[:, :, row : row + PATCH, column : column + PATCH] = patch
        return images
