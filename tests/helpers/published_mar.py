"""The published MAR's arithmetic, said plainly, under its published names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from published_flow import PublishedFlow

WIDTH, HEADS, DEPTH, BUFFER, TOKENS, CHANNELS, CLASSES = 16, 2, 2, 3, 4, 3, 5


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = (nn.LayerNorm(WIDTH // HEADS, eps=1e-5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        scores = self.q_norm(q) @ self.k_norm(k).transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class PublishedMAR(nn.Module):
    """Every parameter is random."""

    def __init__(self) -> None:
        super().__init__()
        self.class_emb, self.fake_latent = nn.Embedding(CLASSES, WIDTH), nn.Parameter(torch.zeros(1, WIDTH))
        self.z_proj, self.z_proj_ln = nn.Linear(CHANNELS, WIDTH), nn.LayerNorm(WIDTH, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, BUFFER + TOKENS, WIDTH))
        self.encoder_blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.encoder_norm, self.decoder_norm = (nn.LayerNorm(WIDTH, eps=1e-6) for _ in range(2))
        self.decoder_embed, self.mask_token = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, BUFFER + TOKENS, WIDTH))
        self.decoder_blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, TOKENS, WIDTH))
        for name, parameter in self.named_parameters():
            ones = "norm" in name or "z_proj_ln" in name
            nn.init.normal_(parameter, mean=float(ones and name.endswith("weight")), std=0.2)
        self.diffloss = nn.Module()
        self.diffloss.net = PublishedFlow(CHANNELS, 12, 2, condition=WIDTH)

    def condition(self, latents: Tensor, label: int | None, masked: list[int]) -> Tensor:
        """The head's condition at every token, ``(T, W)``, of one image's ``latents (T, C)``; None is no label."""
        code = self.fake_latent[0] if label is None else self.class_emb.weight[label]
        x = torch.cat([code.expand(BUFFER, -1), self.z_proj(latents)]) + self.encoder_pos_embed_learned[0]
        kept = [*range(BUFFER), *(BUFFER + token for token in range(TOKENS) if token not in masked)]
        x = self.z_proj_ln(x)[kept].unsqueeze(0)
        for block in self.encoder_blocks:
            x = block(x)
        whole = self.mask_token[0].expand(BUFFER + TOKENS, -1).clone()
        whole[kept] = self.decoder_embed(self.encoder_norm(x))[0]
        x = (whole + self.decoder_pos_embed_learned[0]).unsqueeze(0)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[0, BUFFER:] + self.diffusion_pos_embed_learned[0]
