"""The flow's config of stage 3, and the registry of the generators in this room."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from flowprior.run.config import option, registry_section
from generation.config import GenerationConfig
from generation.presets import JOINT
from simflow.model import TarFlowConfig

GENERATORS = {"tarflow": TarFlowConfig}
PRESETS = Path(__file__).parent / "configs"
JOINT_PRESETS = Path(__file__).parent / JOINT

GeneratorConfig = registry_section("GeneratorConfig", "name", "tarflow", GENERATORS, "which generator is trained")


@dataclass
class SimFlowStageConfig(GenerationConfig):
    """Stage 3 with the autoregressive flow."""

    NAME = "simflow"
    PRESETS = PRESETS

    model: GeneratorConfig = option(GeneratorConfig, "")

    def makes_autoencoder(self) -> str:
        if (JOINT_PRESETS / f"{self.command_line.preset}.yaml").is_file():
            return f"bash scripts/train_simflow.sh run_dir={self.run_dir}"
        return super().makes_autoencoder()

    def makes_generator(self, regularisers: Collection[str]) -> str:
        if "simflow" not in regularisers:
            return f"run `bash scripts/train_tarflow.sh run_dir={self.run_dir}`"
        ae = f"{self.run_dir}/ae"
        return f"restore it, or delete {ae} and run `bash scripts/train_simflow.sh run_dir={self.run_dir}`"
