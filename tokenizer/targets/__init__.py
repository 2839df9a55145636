"""Sources of target features, by name. A new one is a file with a config that has ``load``, and a line in ``TARGETS``."""

from __future__ import annotations

from flowprior.training.config import registry_section
from tokenizer.targets.base import TargetContext, TargetFeatures
from tokenizer.targets.digits_semantic import DigitsSemanticTarget
from tokenizer.targets.file import FileTarget

TARGETS = {"digits_semantic": DigitsSemanticTarget, "file": FileTarget}

TargetConfig = registry_section("TargetConfig", "source", "digits_semantic", TARGETS, "where target features come from")


def load_target(config: TargetConfig, context: TargetContext) -> TargetFeatures:
    """The features that ``config.source`` gives."""
    return getattr(config, config.source).load(context)
