"""Sources of target features, by name. A new one is a file with a config that has ``load``, and a line in ``TARGETS``."""

from __future__ import annotations

from dataclasses import field, make_dataclass

from flowprior.training.config import option
from tokenizer.targets.base import TargetContext, TargetFeatures
from tokenizer.targets.digits_semantic import DigitsSemanticTarget
from tokenizer.targets.file import FileTarget

TARGETS = {"digits_semantic": DigitsSemanticTarget, "file": FileTarget}


def _check_source(self: object) -> None:
    if self.source not in TARGETS:
        raise ValueError(f"source is one of {', '.join(TARGETS)}, not '{self.source}'")


TargetConfig = make_dataclass(
    "TargetConfig",
    [("source", str, option("digits_semantic", f"where target features come from: one of {', '.join(TARGETS)}"))]
    + [(name, config, field(default_factory=config)) for name, config in TARGETS.items()],
    namespace={"__post_init__": _check_source, "__doc__": "The target features; every source has its own section."},
)


def load_target(config: TargetConfig, context: TargetContext) -> TargetFeatures:
    """The features that ``config.source`` gives."""
    return getattr(config, config.source).load(context)
