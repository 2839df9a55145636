"""MAR's config of stage 3, the registry of the generators in this room, and what runs and generators of before their norms' eps count as."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowprior.notes import note
from flowprior.run.config import option, read_yaml, registry_section
from flowprior.run.run_folder import RunFolder
from generation.config import GenerationConfig
from mar.model import NORMS_BEFORE, MARConfig

GENERATORS = {"mar": MARConfig}
PRESETS = Path(__file__).parent / "configs"

GeneratorConfig = registry_section("GeneratorConfig", "name", "mar", GENERATORS, "which generator is trained")


@dataclass
class MARStageConfig(GenerationConfig):
    """Stage 3 with MAR."""

    NAME = "mar"
    PRESETS = PRESETS

    model: GeneratorConfig = option(GeneratorConfig, "")

    @classmethod
    def complete_section(cls, section: Any, what: str) -> Any:
        """With the eps of the norms that MAR was trained with, where the section is from before they stood in it."""
        if (
            not isinstance(section, dict)
            or not isinstance(options := section.get("mar"), dict)
            or "qk_norm_eps" in options
        ):
            return section
        if section.get("name", "mar") == "mar":
            note(
                f"{what} states no eps of its norms: {NORMS_BEFORE['qk_norm_eps']:g} is taken, as timm's blocks have had it since 1.0.19"
            )
        return section | {"mar": options | NORMS_BEFORE}

    def keep_what_began(self, folder: RunFolder) -> None:
        """A run that began before its config stated the eps of its norms goes on with the eps that they have."""
        if self.model.name == "mar" and folder.has_begun() and folder.config_file.is_file():
            begun = self.complete_section(read_yaml(folder.config_file).get("model"), f"the run in {folder.path}")
            options = begun.get("mar") if isinstance(begun, dict) else None
            if options and options.items() >= NORMS_BEFORE.items():
                kept = replace(self.model.mar, **NORMS_BEFORE)
                if kept != self.model.mar:
                    note(f"the run in {folder.path} goes on with the eps of norms that it began with, {NORMS_BEFORE}")
                self.model.mar = kept
