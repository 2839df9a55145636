"""The semantic target: patch or pooled features of any timm model over images, e.g. DINOv2's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from flowprior.data.images import open_images
from flowprior.errors import UserError, one_line
from flowprior.notes import note
from flowprior.pretrained.package_file import chosen_file
from flowprior.pretrained.timm_encoder import TimmEncoder, built_at, norms_late, patch_side, whole_patches
from flowprior.pretrained.timm_models import build_timm, hub_weights, timm_config
from flowprior.run.config import option
from flowprior.run.files import file_sha256
from flowprior.training.randomness import stream_seed
from tokenizer.prior.targets.base import TargetContext, TargetFeatures
from tokenizer.prior.targets.extraction import ExtractionOptions, extracted_features

REMEDY = "write target.timm.weights=<the file>"


@dataclass
class TimmTarget(ExtractionOptions):
    """source=timm: features of the images of the data section, which are given to the model at data.size, or resampled to the nearest
    multiple of its patches."""

    model: str = option("vit_base_patch14_dinov2.lvd142m", "any timm model")
    features: Literal["patch", "pooled", "cls"] = option(
        "patch", "a row for every position, one as the model pools them, or the class token"
    )
    pretrained: bool = option(True, "false: random weights")
    weights: str = option(
        "", "the model's weight file (.safetensors or .pth), in place of the hub", changes_result=False
    )
    package: str = option("", "an installed Python package that holds the weight file, in place of the hub")

    def load(self, context: TargetContext) -> TargetFeatures:
        images = open_images(context.data)
        weights = "random"
        if self.pretrained:
            weights = file_sha256(file) if (file := self.weight_file()) else "hub"
        facts = _facts(self.model, context.data.size)
        recipe = f"{self.model} {self.features} {weights} size {context.data.size}"
        if facts.size != context.data.size:
            recipe += f" at {facts.size}"
        if facts.late_norm and self.features != "pooled":
            recipe += " normed"
        name = f"{self.model} {self.features} features"
        return extracted_features(context, name, recipe, images, self, lambda: self.build(context))

    def weight_file(self) -> Path | None:
        """The file that the options name; None where it comes from the hub."""
        return chosen_file(self.weights, self.package, "target.timm")

    def build(self, context: TargetContext) -> TimmEncoder:
        """The model, on the device.

        Raises:
            UserError: timm knows no such model, it does not take images of this size, or its weights cannot be had.
        """
        file, size, device = None, context.data.size, context.world.device
        if self.pretrained:
            file = self.weight_file() or hub_weights(self.model, REMEDY)
        at = _facts(self.model, size).size
        if at != size:
            note(f"images of {size} px are resampled to {at} px for '{self.model}', a multiple of its patches")
        model = built_at(self.model, at, file, stream_seed(context.seed, "timm"))
        encoder = TimmEncoder(model, self.features, at).to(device).eval().requires_grad_(False)
        try:
            if unseen := _unseen_border(encoder, size, device):
                note(
                    f"'{self.model}' does not see {unseen} of images of {size} px: another data.size may suit it better"
                )
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"'{self.model}' takes no images of data.size={size} pixels ({one_line(error, limit=120)})"
            ) from error
        return encoder


class _Facts(NamedTuple):
    """What is known of a model before it is built in full."""

    size: int  # pixels on a side that it is given
    late_norm: bool  # whether its last norm lies behind the pooling


def _facts(name: str, size: int) -> _Facts:
    """Of the timm model ``name`` for images of ``size`` pixels; :class:`UserError` where timm cannot build it."""
    with torch.device("meta"):
        try:
            model = build_timm(name)
        except UserError:
            timm_config(name)  # what is unknown to timm is said; some models cannot be built without numbers
            return _Facts(size, False)
    patch = patch_side(model)
    return _Facts(whole_patches(size, patch) if patch else size, norms_late(model))


def _unseen_border(encoder: TimmEncoder, size: int, device: torch.device) -> str:
    """Which rows and columns of an image no feature depends on, in words; empty where there are none."""
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(1, 3, size, size, generator=generator) * 255).to(device).requires_grad_()
    with torch.enable_grad():
        features = encoder(image).float()
        mixed = features * torch.randn(features.shape, generator=generator).to(device)
        seen = torch.autograd.grad(mixed.sum(), image)[0].abs().sum((0, 1)) > 0  # (S, S)
    rows, columns = int((~seen.any(1)).sum()), int((~seen.any(0)).sum())
    return f"{rows} rows and {columns} columns" if rows or columns else ""
