"""Small autoregressive flows away from the identity, which a fresh one is."""

import torch
from torch import Tensor, nn

from simflow.flow import AutoregressiveFlow

TOKENS, CHANNELS, CLASSES = 5, 3, 4


def shake(module: nn.Module, std: float, seed: int = 0) -> nn.Module:
    """``module`` with every parameter drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module.eval()


def random_flow(std: float = 0.25, dtype: torch.dtype = torch.float32, **options) -> AutoregressiveFlow:
    sizes = dict(tokens=TOKENS, channels=CHANNELS, width=16, depths=(1, 2, 1), heads=2, num_classes=CLASSES) | options
    return shake(AutoregressiveFlow(**sizes), std).to(dtype)


def latents_and_labels(count: int = 6, dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(count, TOKENS, CHANNELS, generator=generator, dtype=dtype)
    return latents, torch.randint(0, CLASSES + 1, (count,), generator=generator)
