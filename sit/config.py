"""SiT's config of stage 3, and the registry of the generators in this room."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowprior.run.config import option, registry_section
from generation.config import GenerationConfig
from sit.model import SiTConfig

GENERATORS = {"sit": SiTConfig}
PRESETS = Path(__file__).parent / "configs"

GeneratorConfig = registry_section("GeneratorConfig", "name", "sit", GENERATORS, "which generator is trained")


@dataclass
class SiTStageConfig(GenerationConfig):
    """Stage 3 with SiT."""

    NAME = "sit"
    PRESETS = PRESETS

    model: GeneratorConfig = option(GeneratorConfig, "")
