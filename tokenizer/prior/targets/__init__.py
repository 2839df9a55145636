"""Sources of target features, by name. A new one is a file with a config that has ``load``, and a line in ``TARGETS``."""

from __future__ import annotations

from flowprior.errors import UserError
from flowprior.run.config import registry_section
from tokenizer.prior.targets.autoencoder import AutoencoderTarget
from tokenizer.prior.targets.base import TargetContext, TargetFeatures
from tokenizer.prior.targets.codebook import CodebookTarget
from tokenizer.prior.targets.digits_lowlevel import DigitsLowLevelTarget
from tokenizer.prior.targets.digits_semantic import DigitsSemanticTarget
from tokenizer.prior.targets.file import FileTarget
from tokenizer.prior.targets.hf_embedding import HFEmbeddingTarget
from tokenizer.prior.targets.timm_model import TimmTarget
from tokenizer.prior.targets.word_vectors import WordVectorsTarget

TARGETS = {
    "digits_semantic": DigitsSemanticTarget,
    "digits_lowlevel": DigitsLowLevelTarget,
    "file": FileTarget,
    "hf_embedding": HFEmbeddingTarget,
    "timm": TimmTarget,
    "autoencoder": AutoencoderTarget,
    "codebook": CodebookTarget,
    "word_vectors": WordVectorsTarget,
}

TargetConfig = registry_section("TargetConfig", "source", "digits_semantic", TARGETS, "where target features come from")


def takes_images(config: TargetConfig) -> bool:
    """Whether the chosen source reads the images of the data section."""
    return _of(config) in ("timm", "autoencoder", "patches")


def embedded_images_of(config: TargetConfig) -> str:
    """The embedded data set that the chosen source is made of, whatever the data section names; empty where it is made of others."""
    made_of = {"digits_semantic": config.digits_semantic.of, "digits_lowlevel": config.digits_lowlevel.of}
    return made_of.get(_of(config), "")


def _of(config: TargetConfig) -> str:
    """The chosen source, and of a codebook what it is a codebook of."""
    return config.codebook.of if config.source == "codebook" else config.source


def load_target(config: TargetConfig, context: TargetContext) -> TargetFeatures:
    """The features that ``config.source`` gives; a source may ask for another's, which are then kept in a folder of their own."""

    def other(name: str) -> TargetFeatures:
        if name not in TARGETS:
            raise UserError(
                f"there is no source of target features called '{name}': choose one of {', '.join(TARGETS)}"
            )
        return getattr(config, name).load(context._replace(folder=context.folder / f"target_{name}"))

    [source] = config.chosen
    return source.load(context._replace(other=other))
