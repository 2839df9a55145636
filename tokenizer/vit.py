"""timm's vision transformers: built at any image and patch size, with pretrained weights resampled to it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from flowprior.errors import UserError, one_line
from flowprior.training.archives import load_pt
from flowprior.training.config import option
from flowprior.training.files import read_tensors


@dataclass
class ViTConfig:
    """A transformer: any timm ViT by name, or a plain one by its sizes."""

    name: str = option("", "a timm ViT, e.g. vit_large_patch14_dinov2.lvd142m; empty: a plain one of the sizes below")
    pretrained: bool = option(False, "start from the weights that timm knows for this name")
    width: int = option(96, "of a plain ViT")
    depth: int = option(3, "of a plain ViT")
    heads: int = option(3, "of a plain ViT")
    weights: str = option(
        "", "file with the pretrained weights, where they are not to come from the hub", changes_result=False
    )

    def __post_init__(self) -> None:
        if self.pretrained and not self.name:
            raise ValueError("pretrained weights need the name of a timm model")
        if self.weights and not self.pretrained:
            raise ValueError("weights is the file of pretrained weights: write pretrained=true beside it")
        if min(self.width, self.depth, self.heads) < 1:
            raise ValueError("width, depth and heads are at least 1")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")


def build_vit(
    config: ViTConfig, image_size: int, patch_size: int | None, position_std: float = 0.02
) -> VisionTransformer:
    """A timm vision transformer without a head; pretrained patch embedding and positions are resampled to these sizes by timm.

    Args:
        config: which.
        image_size, patch_size: pixels on a side; no patch size is the model's own.
        position_std: of positions that start at random.

    Raises:
        UserError: timm knows no such model, it is not a ViT, or its weights cannot be had.
    """
    if not config.name:
        vit = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            global_pool="",
            class_token=False,
        )
        nn.init.normal_(vit.pos_embed, std=position_std)
        return vit
    sizes = {"img_size": image_size} | ({"patch_size": patch_size} if patch_size else {})
    overlay = {"state_dict": _read_weights(Path(config.weights))} if config.weights else None
    try:
        vit = timm.create_model(
            config.name, pretrained=config.pretrained, num_classes=0, pretrained_cfg_overlay=overlay, **sizes
        )
    except (RuntimeError, TypeError, AssertionError, KeyError) as error:
        what = f"the weights in {config.weights} are not those of" if overlay else "timm cannot build the ViT"
        raise UserError(f"{what} '{config.name}' at {image_size} px ({one_line(error)})") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"the weights of '{config.name}' are not on this machine and cannot be fetched: put model.safetensors from "
            f"huggingface.co/{_hub_name(config.name)} into HF_HOME ({os.environ.get('HF_HOME', '~/.cache/huggingface')}), name the file with "
            f"weights=<path> beside pretrained, or write pretrained=false"
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise UserError(
            f"'{config.name}' is not one of timm's vision transformers: choose a name that starts with vit_"
        )
    if not config.pretrained and vit.pos_embed is not None:
        nn.init.normal_(vit.pos_embed, std=position_std)
    return vit


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per colour, of images in [0, 1], that timm's weights of this name were trained with."""
    known = timm.get_pretrained_cfg(name)
    return (tuple(known.mean), tuple(known.std)) if known is not None else ((0.5,) * 3, (0.5,) * 3)


def _hub_name(name: str) -> str:
    known = timm.get_pretrained_cfg(name)
    return (known.hf_hub_id if known is not None else None) or f"timm/{name}"


def _read_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` or ``.pth`` file; nothing else is unpickled."""
    if file.suffix == ".safetensors" or not file.is_file():
        return read_tensors(file, "file of pretrained weights")
    weights = load_pt(file, "file of pretrained weights", map_location="cpu")
    if not isinstance(weights, dict):
        raise UserError(f"the pretrained weights {file} must hold a dictionary of tensors")
    return weights
