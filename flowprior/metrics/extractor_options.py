"""How a person chooses the extractor of features. Nothing here loads torch-fidelity or timm before it measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch

from flowprior.errors import UserError
from flowprior.metrics.optional import library
from flowprior.metrics.registry import EXTRACTORS, check_extractor, split_name
from flowprior.pretrained.package_file import chosen_file
from flowprior.run.config import Section, option

if TYPE_CHECKING:
    from flowprior.metrics.extractors import Extractor


@dataclass
class TimmExtractor(Section):
    """extractor=timm: pooled features of any timm model, of images resampled to its size and normalised as timm states it for the weights."""

    model: str = option("vit_small_patch14_dinov2.lvd142m", "any timm model")
    weights: str = option("", "the model's weight file (.safetensors or .pth), in place of the hub")
    package: str = option("", "an installed Python package that holds the weight file, in place of the hub")
    size: int = option(
        0, "pixels on a side that images are resampled to; 0: as timm states it for these weights", least=0
    )


@dataclass
class ExtractorOptions:
    """Which extractor, and where its weights are. A config calls this section ``SECTION``, for messages."""

    SECTION: ClassVar[str] = ""

    extractor: str = option("", f"extractor of features: {' or '.join(EXTRACTORS)}; timm:<model> as well")
    weights: str = option("", "the extractor's weight file, where it is not in torch's hub folder")
    timm: TimmExtractor = option(TimmExtractor, "")

    def __post_init__(self) -> None:
        if self.extractor:
            self._refuse_file_in_name()
            check_extractor(self.extractor_name)
        if self.extractor == "timm" and self.weights:
            raise ValueError(f"of extractor=timm the weight file is timm.weights: write timm.weights={self.weights}")

    def _refuse_file_in_name(self) -> None:
        """A ``ValueError`` for ``NAME=FILE``, which names an extractor where a list of them is wanted: here the file is an option."""
        name, equals, file = self.extractor.partition("=")
        if not equals:
            return
        kind, model, size = split_name(name)
        words = [f"extractor={name}", f"weights={file}"]
        if kind == "timm":
            where = f"package={file.removeprefix('package:')}" if file.startswith("package:") else f"weights={file}"
            words = ["extractor=timm", f"timm.model={model}", f"timm.size={size}" if size else "", f"timm.{where}"]
        section = f"{self.SECTION}." if self.SECTION else ""
        told = " ".join(section + word for word in words if word)
        raise ValueError(f"the extractor's weight file is an option of its own: write {told}")

    @property
    def extractor_name(self) -> str:
        """As :class:`~flowprior.metrics.extractors.Extractor` takes it."""
        if self.extractor != "timm":
            return self.extractor
        return f"timm:{self.timm.model}" + (f"@{self.timm.size}" if self.timm.size else "")

    @property
    def own_weights(self) -> bool:
        """Whether a person named the weights."""
        return bool(self.weights or (self.extractor == "timm" and (self.timm.weights or self.timm.package)))

    def weights_file(self) -> Path | None:
        """The file of weights that a person named; None where it is the usual one.

        Raises:
            UserError: timm's is not there, or is named twice.
        """
        if self.extractor == "timm":
            return chosen_file(self.timm.weights, self.timm.package, f"{self.SECTION}.timm".lstrip("."))
        return Path(self.weights) if self.weights else None

    def open_extractor(self, device: str | torch.device = "cpu") -> Extractor:
        """The extractor on a device; its weights are read when it is first used.

        Raises:
            UserError: timm knows no such model, or the file that was named is not there.
        """
        extractors = library("flowprior.metrics.extractors")
        return extractors.Extractor(self.extractor_name, device=device, weights_path=self.weights_file())


def split_weights(text: str) -> tuple[str, Path | None]:
    """The extractor's name and weight file of ``NAME``, ``NAME=FILE`` or ``NAME=package:PACKAGE``.

    Raises:
        UserError: there is no such extractor or package.
    """
    name, _, weights = text.partition("=")
    try:
        check_extractor(name)
    except ValueError as error:
        raise UserError(str(error)) from None
    if weights.startswith("package:"):
        return name, chosen_file("", weights.removeprefix("package:"), name)
    return name, Path(weights) if weights else None
