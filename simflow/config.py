"""The flow's config of stage 3, and the registry of the generators in this room."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowprior.notes import note
from flowprior.run.config import option, registry_section
from flowprior.run.files import read_json
from generation.config import GenerationConfig
from generation.presets import JOINT
from simflow.model import TarFlowConfig

GENERATORS = {"tarflow": TarFlowConfig}
PRESETS = Path(__file__).parent / "configs"
JOINT_PRESETS = Path(__file__).parent / JOINT

GeneratorConfig = registry_section("GeneratorConfig", "name", "tarflow", GENERATORS, "which generator is trained")


def trained_jointly(saved: dict[str, Any]) -> bool:
    """Whether the flow whose ``config.json`` is ``saved`` was trained with its autoencoder."""
    return saved.get("about", {}).get("trained") == "with the autoencoder"


@dataclass
class SimFlowStageConfig(GenerationConfig):
    """Stage 3 with the autoregressive flow."""

    NAME = "simflow"
    PRESETS = PRESETS

    model: GeneratorConfig = option(GeneratorConfig, "")

    def equip(self, model: Any, saved: dict[str, Any]) -> None:
        """Nothing; but say so where samples keep a noise that the decoder was not trained on."""
        options, inputs = model.config, self.folder / "inputs.json"
        goes_on = inputs.is_file() and "start" in read_json(inputs, "list of inputs")
        if options.noise_std and not options.sampler.denoise and not trained_jointly(saved) and not goes_on:
            note(
                f"samples keep the noise of std {options.noise_std:g} that this flow was trained with on cached latents: where the decoder was not "
                "trained on that, write model.tarflow.sampler.denoise=true"
            )

    def makes_generator(self, regularisers: Collection[str]) -> str:
        if "simflow" not in regularisers:
            return f"run `bash scripts/train_tarflow.sh run_dir={self.run_dir}`"
        ae = f"{self.run_dir}/ae"
        return f"restore it, or delete {ae} and run `bash scripts/train_simflow.sh run_dir={self.run_dir}`"
