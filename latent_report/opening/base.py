"""What the report measures: latents, and what is known beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from flowprior.data.chosen_images import ChosenImages
from flowprior.data.images import ImageConfig, ImageSource, open_images
from flowprior.errors import UserError
from flowprior.notes import note
from latent_report.config import LEAST_IMAGES
from tokenizer.reconstruct import encoded


@dataclass
class Latents:
    """A tokenizer's latents of a set of images.

    Attributes:
        kind: of tokenizer, in words.
        latents: raw, float32 ``(N, T, C)`` on the CPU; of a posterior the mean.
        places: ``(T,)`` of a sequence of tokens, ``(h, w)`` of a map.
        labels: int64 ``(N,)``, where there are any.
        images: uint8 ``(N, 3, H, H)``, where latents were not bare.
        decode: raw latents ``(B, T, C)`` to images in [-1, 1], likewise.
        about: what the report says of them.
    """

    kind: str
    latents: Tensor
    places: tuple[int, ...]
    labels: Tensor | None = None
    images: Tensor | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageOptions:
    """Which images are encoded: ``count`` of those that ``data`` names, spread evenly, or all with 0.

    ``labels (N,)``, one for each image before any is chosen, take the place of those that come with images or latents.
    """

    data: ImageConfig
    count: int = 0
    labels: Tensor | None = None
    opened: dict[int, tuple[ImageSource, str]] = field(default_factory=dict)

    def images(self, size: int) -> tuple[ImageSource, str]:
        """The source at ``size`` pixels on a side and its fingerprint, which takes a look at every image: once for all tokenizers."""
        if size not in self.opened:
            source = open_images(replace(self.data, size=size))
            self.opened[size] = (source, source.fingerprint())
        return self.opened[size]


class Tokenizer(Protocol):
    """What can be measured on images: a network on a device, of which ``size`` is the side it takes, 0 for any."""

    def to(self, device: torch.device) -> Any: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


@torch.no_grad()
def encode_images(tokenizer: Tokenizer, kind: str, options: ImageOptions) -> Latents:
    """The latents of the chosen images, cropped centrally at the tokenizer's own size.

    Raises:
        UserError: there are too few images, other than there are labels, or the latents are not finite.
    """
    size = tokenizer.config.image_size or options.data.size
    source, fingerprint = options.images(size)
    chosen = spread(len(source), options.count)
    check_count(len(chosen), f"the data ({source.kind})")
    images = ChosenImages(source, chosen)
    parts = list(encoded(tokenizer, images, 0, f"encode with {kind}"))
    latents = torch.cat([latents.float().cpu() for _, latents in parts])
    check_latents(latents, kind)
    labels = torch.cat(images.labels) if source.num_classes > 1 else None
    if options.labels is not None:
        check_labels(options.labels, len(source), f"the data ({source.kind})")
        labels = options.labels[chosen]
    trained_on = (getattr(tokenizer, "about", None) or {}).get("data", {}).get("source", "")
    places = directions(getattr(tokenizer, "places", None) or (latents.shape[1],))
    device = next(tokenizer.parameters()).device
    return Latents(
        kind,
        latents,
        places,
        labels,
        torch.cat([pictures for pictures, _ in parts]),
        lambda part: tokenizer.decode(part.to(device)),
        {
            "image_size": size,
            "images": fingerprint,
            "image_kind": source.kind,
            "source": options.data.source,
            "trained_on": trained_on,
        },
    )


def spread(total: int, count: int) -> list[int]:
    """``count`` of ``total`` numbers from 0, spread evenly; all with 0 or more than there are."""
    if not 0 < count < total:
        return list(range(total))
    return torch.linspace(0, total - 1, count, dtype=torch.float64).round().long().tolist()


def directions(sides: tuple[int, ...]) -> tuple[int, ...]:
    """The sides of a map along which there is more than one place; ``(1,)`` where there is none."""
    return tuple(side for side in sides if side > 1) or (1,)


def check_labels(labels: Tensor, count: int, what: str) -> None:
    """A :class:`UserError` unless there is a label for each of ``count`` images."""
    if len(labels) != count:
        raise UserError(f"{what} has {count} images and there are {len(labels)} labels: give one for each")


def check_count(count: int, what: str) -> None:
    """A :class:`UserError` where there are too few images."""
    if count < LEAST_IMAGES:
        raise UserError(f"{what} has {count} images, and the report takes {LEAST_IMAGES} at least: name more")


def check_latents(latents: Tensor, what: str) -> None:
    """A :class:`UserError` for latents that are not finite, or all alike."""
    bad = (~torch.isfinite(latents).flatten(1).all(1)).nonzero()
    if len(bad):
        raise UserError(f"the latents of {what} are not finite in {len(bad)} images, first in number {int(bad[0])}")
    if not latents.double().sub(latents.double().mean((0, 1))).abs().max() > 0:
        raise UserError(f"the latents of {what} are the same everywhere: there is nothing to measure")


def without_images(kind: str, latents: Tensor, places: tuple[int, ...], labels: Tensor | None, what: str) -> Latents:
    """Bare latents, looked at; what needs a decoder will be left out."""
    check_count(len(latents), what)
    check_latents(latents, what)
    if labels is not None:
        check_labels(labels, len(latents), what)
    note(f"{what} holds latents alone: what needs images or a decoder is left out")
    return Latents(kind, latents, places, labels)
