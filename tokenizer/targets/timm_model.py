"""The semantic target: patch or pooled features of any timm model over images, e.g. DINOv2's."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowprior.data.images import open_images
from flowprior.errors import UserError, one_line
from flowprior.training.config import option
from flowprior.training.files import file_sha256
from flowprior.training.randomness import stream_seed
from tokenizer.targets.base import TargetContext, TargetFeatures
from tokenizer.targets.extraction import ExtractionOptions, extracted_features
from tokenizer.targets.hub import NoSuchFile, hub_file

REMEDY = "write target.timm.weights=<the file>"


@dataclass
class TimmTarget(ExtractionOptions):
    """source=timm: features of the images of the data section, which are given to the model at data.size."""

    model: str = option("vit_base_patch14_dinov2.lvd142m", "any timm model")
    features: Literal["patch", "pooled", "cls"] = option(
        "patch", "a row for every position, one as the model pools them, or the class token"
    )
    pretrained: bool = option(True, "false: random weights")
    weights: str = option(
        "", "the model's weight file (.safetensors or .pth), in place of the hub", changes_result=False
    )

    def load(self, context: TargetContext) -> TargetFeatures:
        images = open_images(context.data)
        weights = "random"
        if self.pretrained:
            weights = file_sha256(_weight_file(self.weights)) if self.weights else "hub"
        recipe = f"{self.model} {self.features} {weights} size {context.data.size}"
        name = f"{self.model} {self.features} features"
        return extracted_features(context, name, recipe, images, self, lambda: self.build(context))

    def build(self, context: TargetContext) -> TimmEncoder:
        """The model, on the device.

        Raises:
            UserError: timm knows no such model, it does not take images of this size, or its weights cannot be had.
        """
        file = None
        if self.pretrained:
            file = _weight_file(self.weights) if self.weights else _hub_weights(self.model)
        model = _build_model(self.model, context.data.size, file, context.seed)
        encoder = TimmEncoder(model, self.features).to(context.workers.device).eval()
        try:
            with torch.no_grad():
                encoder(
                    torch.zeros(
                        1, 3, context.data.size, context.data.size, dtype=torch.uint8, device=context.workers.device
                    )
                )
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"'{self.model}' takes no images of data.size={context.data.size} pixels ({one_line(error, limit=120)})"
            ) from error
        return encoder


class TimmEncoder(nn.Module):
    """uint8 images ``(B, 3, S, S)`` to features ``(B, P, d)``, normalised as the model was trained.

    Args:
        model: of timm, without a classifier.
        features: ``patch``, ``pooled`` or ``cls``.

    Raises:
        UserError: ``cls`` of a model without a class token.
    """

    def __init__(self, model: nn.Module, features: str) -> None:
        super().__init__()
        if features == "cls" and getattr(model, "cls_token", None) is None:
            raise UserError("this model has no class token: write target.timm.features=pooled")
        self.model, self.features = model, features
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255)

    def forward(self, images: Tensor) -> Tensor:
        x = self.model.forward_features((images.float() - self.mean) / self.std)
        if self.features == "pooled":
            return self.model.forward_head(x, pre_logits=True).flatten(1).unsqueeze(1)  # (B, 1, d)
        if self.features == "cls":
            return x[:, :1]  # (B, 1, d)
        if x.dim() == 4:  # a map; most of timm's have channels first
            last = str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC")
            return x.flatten(1, 2) if last else x.flatten(2).transpose(1, 2)  # (B, P, d)
        return x[:, getattr(self.model, "num_prefix_tokens", 0) :]  # (B, P, d)


def _weight_file(path: str) -> Path:
    if not Path(path).is_file():
        raise UserError(f"there is no weight file at '{path}' (target.timm.weights)")
    return Path(path)


def _hub_weights(name: str) -> Path:
    config = _known(name)
    if config is None:
        raise _unknown(name)
    if not config.hf_hub_id:
        raise UserError(
            f"timm knows no weights of '{name}': write target.timm.weights=<file>, or choose another target.timm.model"
        )
    for file in ("model.safetensors", "pytorch_model.bin"):
        try:
            return hub_file(config.hf_hub_id, config.hf_hub_filename or file, REMEDY)
        except NoSuchFile:
            continue
    raise UserError(f"the hub's {config.hf_hub_id} holds no weights of '{name}': {REMEDY}")


def _known(name: str) -> Any:
    """What timm knows of the weights of ``name``; None for a model without any.

    Raises:
        UserError: there is no such model, or no weights of it with the tag behind the dot.
    """
    import timm

    if not timm.is_model(name):
        raise _unknown(name)
    try:
        return timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        model, _, tag = name.partition(".")
        tags = [other.partition(".")[2] for other in timm.list_pretrained(f"{model}.*")]
        raise UserError(
            f"timm knows no weights '{tag}' of '{model}'; those that it knows are {', '.join(tags) or 'none'}"
        ) from error


def _unknown(name: str) -> UserError:
    import timm

    near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=3, cutoff=0.3)
    return UserError(f"timm knows no model '{name}'; near it are {', '.join(near) or 'none'}")


def _build_model(name: str, size: int, weights: Path | None, seed: int) -> nn.Module:
    """The timm model without a classifier; positions and patches are resampled to ``size`` where they are fixed."""
    model = _create(name, size, weights, stream_seed(seed, "timm"))
    if weights is None:
        return model
    # timm passes over names that do not match: what the file has not filled still depends on the seed.
    other = _create(name, size, weights, stream_seed(seed, "timm, again")).state_dict()
    missing = [key for key, value in model.state_dict().items() if not torch.equal(value, other[key])]
    if missing:
        raise UserError(
            f"the weight file {weights} is not one of '{name}': it lacks {', '.join(missing[:3])}, among others"
        )
    return model


def _create(name: str, size: int, weights: Path | None, seed: int) -> nn.Module:
    import timm

    config = _known(name)
    options = {"img_size": size} if config is not None and config.fixed_input_size else {}
    if weights:
        options["pretrained_cfg_overlay"] = {"file": str(weights)}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(
            devices=devices
        ):  # timm draws weights from the global generator, which is the caller's
            torch.default_generator.manual_seed(seed)
            return timm.create_model(name, pretrained=weights is not None, num_classes=0, **options)
    except Exception as error:  # of a file that is damaged or of another model: the readers raise a dozen kinds
        reason = one_line(error)
        if weights is None:
            raise UserError(f"timm cannot build '{name}' at {size} px ({reason})") from error
        raise UserError(
            f"the weight file {weights} does not fit '{name}' at {size} px, or is damaged ({reason})"
        ) from error
