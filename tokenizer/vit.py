"""timm's vision transformers: built at any image and patch size, with pretrained weights resampled to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from timm.layers import PatchEmbed
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from flowprior.errors import UserError
from flowprior.pretrained.timm_models import NumbersOnTheCPU, build_timm, hub_weights, timm_config, timm_module
from flowprior.run.config import Section, option

NORM_EPS = 1e-6  # of plain transformers; timm's named ones have that of their training
# Where timm keeps transformers of one sequence of patches, which further tokens can join.
SERVING = ("vision_transformer", "deit", "eva")
WHY_NOT = {
    "vision_transformer_hybrid": "its patches come out of a convolutional network (hybrid)",
    "vitamin": "its patches come out of a convolutional network (hybrid)",
    "levit": "its stages shrink the sequence",
    "pit": "its stages shrink the sequence",
    "crossvit": "it has two sequences of patches of different sizes",
    "volo": "its first stage looks at windows of a map",
    "beit": "its attention has a table of relative positions, which has none for further tokens",
    "vision_transformer_relpos": "its attention has a table of relative positions, which has none for further tokens",
    "vision_transformer_sam": "its attention looks at windows of a map",
    "naflexvit": "it takes patches of images of any shape, with a mask",
    "cait": "its last blocks look at the class token alone",
    "xcit": "its attention goes across channels, with convolutions over the map",
    "convit": "its first blocks look by relative position, which further tokens have not",
    "tnt": "it has a transformer within every patch",
}


@dataclass
class ViTConfig(Section):
    """A transformer: any timm ViT by name, or a plain one by its sizes."""

    name: str = option("", "a timm ViT, e.g. vit_large_patch14_dinov2.lvd142m; empty: a plain one of the sizes below")
    pretrained: bool = option(False, "start from the weights that timm knows for this name")
    width: int = option(96, "width of a plain ViT", least=1)
    depth: int = option(3, "blocks of a plain ViT", least=1)
    heads: int = option(3, "attention heads of a plain ViT", least=1)
    weights: str = option(
        "", "file with the pretrained weights, where they are not to come from the hub", changes_result=False
    )
    keep_pooling: bool = option(
        False, "keep a timm ViT's pooling, which no token passes, and skip its final norm, as saved ones of before did"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pretrained and not self.name:
            raise ValueError("pretrained weights need the name of a timm model")
        if self.weights and not self.pretrained:
            raise ValueError("weights is the file of pretrained weights: write pretrained=true beside it")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")


def build_vit(
    config: ViTConfig, image_size: int, patch_size: int | None, position_std: float = 0.02
) -> VisionTransformer | Eva:
    """A timm vision transformer without head and pooling; pretrained patch embedding and positions are resampled to these sizes by timm.

    Every parameter has a part in the tokens: a final norm that timm puts behind the pooling is the tokens' here.

    Args:
        config: which.
        image_size, patch_size: pixels on a side; no patch size is the model's own.
        position_std: of positions that start at random.

    Raises:
        UserError: timm knows no such model, it is none whose tokens are one sequence of patches, or its weights cannot be had.
    """
    if not config.name:
        with NumbersOnTheCPU():
            vit = VisionTransformer(
                img_size=image_size,
                patch_size=patch_size,
                embed_dim=config.width,
                depth=config.depth,
                num_heads=config.heads,
                num_classes=0,
                global_pool="",
                class_token=False,
                norm_layer=partial(nn.LayerNorm, eps=NORM_EPS),
            )
        nn.init.normal_(vit.pos_embed, std=position_std)
        return vit
    check_serves(config.name)
    weights = None
    if config.pretrained:
        remedy = "name the file with weights=<path> beside pretrained, or write pretrained=false"
        weights = Path(config.weights) if config.weights else hub_weights(config.name, remedy)
    sizes = {"img_size": image_size, "dynamic_img_size": False} | ({"patch_size": patch_size} if patch_size else {})
    vit = build_timm(config.name, weights, **sizes)
    if not isinstance(vit, VisionTransformer | Eva) or type(vit.patch_embed) is not PatchEmbed:
        raise _no_vit(config.name, "it is none of timm's plain vision transformers")
    if not config.pretrained and vit.pos_embed is not None:
        nn.init.normal_(vit.pos_embed, std=position_std)
    if not config.keep_pooling:
        _leave_out_pooling(vit)
    _keep_positions_still(vit)
    return vit


def check_serves(name: str) -> None:
    """A :class:`UserError` that says why, for a timm model whose tokens are not one sequence of patches; or one that timm does not know."""
    module = timm_module(name)
    if module not in SERVING:
        reason = WHY_NOT.get(
            module, "it works on maps or in stages, not on one sequence of patches that further tokens can join"
        )
        raise _no_vit(name, reason)


def patch_pixels(name: str) -> int:
    """Pixels on a side of the patches of the timm ViT ``name``, as it comes."""
    check_serves(name)
    with torch.device("meta"):
        return build_timm(name).patch_embed.patch_size[0]


def pixel_statistics(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per colour, of images in [0, 1], that timm's weights of this name were trained with.

    Raises:
        UserError: timm does not know the name.
    """
    known = timm_config(name)
    return (tuple(known.mean), tuple(known.std)) if known is not None else ((0.5,) * 3, (0.5,) * 3)


def _no_vit(name: str, reason: str) -> UserError:
    return UserError(
        f"'{name}' cannot serve as a transformer of tokens here: {reason}; choose one of timm's vit_, deit or eva models, "
        f"such as vit_base_patch14_dinov2 or vit_base_patch16_dinov3"
    )


def _leave_out_pooling(vit: VisionTransformer | Eva) -> None:
    """Pooling by attention goes, and a norm behind the pooling becomes the tokens' where they have none."""
    vit.attn_pool = None
    if isinstance(vit.norm, nn.Identity):
        vit.norm = vit.fc_norm
    vit.fc_norm = nn.Identity()


def _keep_positions_still(vit: VisionTransformer | Eva) -> None:
    """Some rotary positions are shifted and scaled at random in training, by the global generator: not here."""
    if getattr(getattr(vit, "rope", None), "aug_active", False):
        vit.rope.aug_active = False
