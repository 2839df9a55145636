"""SiT for one image, from the papers' equations: no batch, one head after the other, float64. Slow on purpose."""

import math

import torch
from torch import Tensor

from sit.model import SiT, SiTConfig


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def predict(model: SiT, x: Tensor, t: float, label: int) -> Tensor:
    """What the network predicts for one image ``x (T, C)``, with gradients to the model's own weights."""
    w = {name: value.double() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    lightning = model.config.block == "lightning"

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        return rms_norm(x, w[f"{name}.weight"]) if lightning else layer_norm(x)

    angles = 1000 * t * 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    time = linear("time_embed.2", silu(linear("time_embed.0", torch.cat([angles.cos(), angles.sin()]))))
    code = time + w["class_embed.weight"][label]  # (W,)
    x = linear("embed", x.double()) + w["positions"]  # (T, W)
    width, heads = x.shape[1], model.config.heads
    for number in range(model.config.depth):
        name = f"blocks.{number}"
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"{name}.modulation.1", silu(code)).split(width)
        q, k, v = linear(f"{name}.attention.qkv", norm(f"{name}.norm1", x) * (1 + scale1) + shift1).split(width, dim=1)
        attended = []
        for head in range(heads):
            one = slice(head * width // heads, (head + 1) * width // heads)
            query, key = q[:, one], k[:, one]
            if lightning:
                query = rms_norm(query, w[f"{name}.attention.q_norm.weight"])
                key = rms_norm(key, w[f"{name}.attention.k_norm.weight"])
            shares = (query @ key.T / math.sqrt(width // heads)).exp()
            attended.append(shares / shares.sum(1, keepdim=True) @ v[:, one])
        x = x + gate1 * linear(f"{name}.attention.proj", torch.cat(attended, dim=1))
        hidden = norm(f"{name}.norm2", x) * (1 + scale2) + shift2
        if lightning:
            hidden = silu(linear(f"{name}.mlp.fc1_g", hidden)) * linear(f"{name}.mlp.fc1_x", hidden)
        else:
            hidden = gelu(linear(f"{name}.mlp.fc1", hidden))
        x = x + gate2 * linear(f"{name}.mlp.fc2", hidden)
    shift, scale = linear("output.modulation.1", silu(code)).split(width)
    return linear("output.linear", norm("output.norm", x) * (1 + scale) + shift)  # (T, C)


def velocity(model: SiT, x: Tensor, t: float, label: int) -> Tensor:
    predicted = predict(model, x, t, label)
    if model.config.prediction == "data":
        return (predicted - x) / max(1 - t, model.config.prediction_clip)
    return predicted


def random_sit(tokens: int = 5, channels: int = 3, classes: int = 4, smooth: bool = False, **options) -> SiT:
    """A small SiT whose every weight is away from the zeros of its initialisation; ``smooth`` in time, as a trained one is."""
    model = SiTConfig(**{"width": 16, "depth": 2, "heads": 2, **options}).build(tokens, channels, classes).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
        if smooth:
            slow = torch.arange(256) % 128 >= 96  # features of at most one radian over the path
            model.time_embed[0].weight.mul_(slow)
    return model
