"""The stages that a study runs, by the commands that a person runs, and the configs that these commands read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flowprior.run.presets import config_from_command_line
from latent_report.__main__ import parse as parse_report
from mar.config import MARStageConfig
from simflow.train_simflow import PRESETS as JOINT_PRESETS
from simflow.train_simflow import SimFlowAEConfig
from sit.config import SiTStageConfig
from tokenizer.config import PRESETS as AE_PRESETS
from tokenizer.config import AEConfig
from tokenizer.prior.train_flowhead import PRESETS as PRIOR_PRESETS
from tokenizer.prior.train_flowhead import FlowPriorConfig


@dataclass(frozen=True)
class Stage:
    """A stage of the study.

    Attributes:
        folder: of the stage in its run.
        commands: what follows ``python -m``, one after the other, each with the same words behind it.
        read: the config of such words.
        measuring: those of ``commands``, by name, that run again where only sampling or measuring is to be otherwise.
        place: words that name what the stage reads and writes, of a run's folder.
    """

    folder: str
    commands: tuple[tuple[str, ...], ...]
    read: Callable[[list[str]], Any]
    place: Callable[[Path], tuple[str, ...]] = lambda run_dir: (f"run_dir={run_dir}",)
    measuring: tuple[str, ...] = ()


def _generator(config: type) -> Stage:
    names = ("cache_latents", "estimate_scale", "train", "generate", "evaluate")
    measuring = tuple(f"{config.NAME} {name}" for name in names[-2:])
    return Stage(
        config.NAME, tuple((config.NAME, name) for name in names), partial(config.read, ""), measuring=measuring
    )


PRIOR = Stage(
    "flowhead",
    (("tokenizer.prior.train_flowhead",),),
    partial(config_from_command_line, FlowPriorConfig, PRIOR_PRESETS, ""),
)
AUTOENCODERS = {
    "tokenizer": Stage(
        "ae",
        (("tokenizer.train_ae",), ("tokenizer.evaluate",)),
        partial(config_from_command_line, AEConfig, AE_PRESETS, ""),
        measuring=("tokenizer.evaluate",),
    ),
    "simflow": Stage(
        "ae",
        (("simflow.train_simflow",), ("simflow.evaluate_ae",)),
        partial(config_from_command_line, SimFlowAEConfig, JOINT_PRESETS, ""),
        measuring=("simflow.evaluate_ae",),
    ),
}
GENERATORS = {config.NAME: _generator(config) for config in (SiTStageConfig, MARStageConfig)}
REPORT = Stage(
    "report",
    (("latent_report",),),
    lambda words: parse_report(words)[1],
    lambda run_dir: (str(run_dir / "ae" / "autoencoder"), f"out={run_dir / 'report'}"),
    measuring=("latent_report", ""),  # the empty name is of seconds that were kept before commands were told apart
)
