"""Sources of target features, by name. A new one is a file with a config that has ``load``, and a line in ``TARGETS``."""

from __future__ import annotations

from dataclasses import field, make_dataclass
from pathlib import Path

from safetensors import safe_open

from flowprior.training.config import option
from flowprior.training.distributed import Workers
from flowprior.training.files import write_tensors
from tokenizer.targets.base import TargetFeatures
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


def load_target(config: TargetConfig, seed: int, folder: Path, workers: Workers) -> TargetFeatures:
    """The features that ``config.source`` gives; computed ones are made by the first process, once, and kept in ``folder``."""
    source = getattr(config, config.source)
    if not source.computed:
        return source.load(seed)
    file = folder / "target.safetensors"
    if workers.is_main and not file.is_file():
        made = source.load(seed)
        write_tensors(file, {"features": made.features}, {"name": made.name})
    workers.barrier()
    with safe_open(file, "pt") as kept:
        return TargetFeatures(kept.get_tensor("features"), kept.metadata()["name"])
