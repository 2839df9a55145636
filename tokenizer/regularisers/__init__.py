"""Regularisers of the latents, by name. A new one is a file with a config that has ``build``, and a line in ``REGULARISERS``."""

from __future__ import annotations

from dataclasses import field, make_dataclass

from flowprior.flow.prior import FlowPrior
from flowprior.training.config import option
from tokenizer.regularisers.base import Regulariser
from tokenizer.regularisers.flow import FlowConfig
from tokenizer.regularisers.kl import KLConfig

REGULARISERS = {"flow": FlowConfig, "kl": KLConfig}


def _check_names(self: object) -> None:
    names = self.name.split("+")
    if self.name != "none" and (set(names) - set(REGULARISERS) or len(set(names)) < len(names)):
        raise ValueError(f"name is none or one or more different ones of {', '.join(REGULARISERS)} joined by +, not '{self.name}'")


RegulariserConfig = make_dataclass(
    "RegulariserConfig",
    [("name", str, option("flow", f"none, or one or more of {', '.join(REGULARISERS)} joined by +"))]
    + [(name, config, field(default_factory=config)) for name, config in REGULARISERS.items()],
    namespace={"__post_init__": _check_names, "__doc__": "Which regularisers act on the latents; every one has its own section."},
)


def build_regularisers(config: RegulariserConfig, prior: FlowPrior | None) -> list[Regulariser]:
    """The regularisers that ``config.name`` lists, in that order; none for ``none``."""
    return [] if config.name == "none" else [getattr(config, name).build(prior) for name in config.name.split("+")]
