"""A timm model as a function from images to features: resampled, normalised as it was trained, and read where one asks."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowprior.errors import UserError
from flowprior.pretrained.timm_models import build_timm, timm_config


class TimmEncoder(nn.Module):
    """uint8 images ``(B, 3, H, W)`` to features ``(B, P, d)``, normalised as the model was trained.

    Args:
        model: of timm, without a classifier.
        features: ``patch``, a row for every position; ``pooled``, one as the model pools them; or ``cls``, the class token.
        size: pixels on a side that other images are resampled to; 0: as they come.

    Raises:
        UserError: ``cls`` of a model without a class token.
    """

    def __init__(self, model: nn.Module, features: str, size: int = 0) -> None:
        super().__init__()
        if features == "cls" and getattr(model, "cls_token", None) is None:
            raise UserError("this model has no class token: write target.timm.features=pooled")
        self.model, self.features, self.size = model, features, size
        # Models that norm what they have pooled give tokens without their trained norm.
        self.norm = model.fc_norm if features != "pooled" and norms_late(model) else nn.Identity()
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        x = resampled(images, self.size)  # (B, 3, s, s)
        x = self.model.forward_features((x - self.mean) / self.std)
        x = self.norm(x) if x.dim() == 3 else x
        if self.features == "pooled":
            return self.model.forward_head(x, pre_logits=True).flatten(1).unsqueeze(1)  # (B, 1, d)
        if self.features == "cls":
            return x[:, :1]  # (B, 1, d)
        if x.dim() == 4:  # a map; most of timm's have channels first
            last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
            return x.flatten(1, 2) if last else x.flatten(2).transpose(1, 2)  # (B, h w, d)
        return x[:, getattr(self.model, "num_prefix_tokens", 0) :]  # (B, P, d)


def resampled(images: Tensor, size: int, white: float = 255) -> Tensor:
    """Images ``(B, 3, H, W)`` of 0 to 255 as float ones of 0 to ``white``, bicubic at ``size`` pixels on a side; 0: at their own."""
    x = images.float() / (255 / white)
    if not size or x.shape[-2:] == (size, size):
        return x
    return F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp(0, white)


def norms_late(model: nn.Module) -> bool:
    """Whether the model's last norm lies behind its pooling."""
    late, own = getattr(model, "fc_norm", None), getattr(model, "norm", None)
    return late is not None and not isinstance(late, nn.Identity) and isinstance(own, nn.Identity)


def patch_side(model: nn.Module) -> int | None:
    """Pixels on a side of the patches that a model of timm cuts images into; None where it cuts none, or they overlap."""
    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple | list) else patch
    stride = getattr(getattr(embed, "proj", None), "stride", (patch,))
    return patch if isinstance(patch, int) and stride[0] == patch else None


def whole_patches(size: int, patch: int) -> int:
    """The multiple of ``patch`` nearest to ``size``, the larger of two."""
    return max(1, (2 * size + patch) // (2 * patch)) * patch


def trained_size(name: str) -> int:
    """The pixels on a side that the weights of this name were trained at, as timm states them; 224 where it does not.

    Raises:
        UserError: timm knows no such model.
    """
    config = timm_config(name)
    return 224 if config is None else config.input_size[-1]


def built_at(name: str, size: int, weights: Path | None, seed: int) -> nn.Module:
    """The model for images of ``size`` pixels, filled from ``weights`` or else with random ones of ``seed``; no other random numbers change.

    Raises:
        UserError: timm knows no such model or cannot build it so, or the file does not fill exactly it.
    """
    config = timm_config(name)
    sizes = {"img_size": size} if config is not None and config.fixed_input_size else {}
    # timm draws weights from the global generator, which is the caller's
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.default_generator.manual_seed(seed)
        return build_timm(name, weights, **sizes)
