"""The flow's config of stage 3, and the registry of the generators in this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowprior.run.config import option, registry_section
from generation.config import GenerationConfig
from simflow.model import TarFlowConfig

GENERATORS = {"tarflow": TarFlowConfig}
PRESETS = Path(__file__).parent / "configs"

GeneratorConfig = registry_section("GeneratorConfig", "name", "tarflow", GENERATORS, "which generator is trained")


@dataclass
class SimFlowStageConfig(GenerationConfig):
    """Stage 3 with the autoregressive flow."""

    NAME = "simflow"
    PRESETS = PRESETS

    model: GeneratorConfig = option(GeneratorConfig, "")
