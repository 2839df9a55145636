"""MAR's config of stage 3: the registry of the generators in this room, what samples are drawn with, and what earlier runs count as."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.config import option, read_yaml, registry_section
from flowprior.run.files import read_json
from flowprior.run.run_folder import RunFolder
from generation.config import GenerationConfig
from mar.distillation import DistilConfig
from mar.flow_map import FlowMap
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
    distil: DistilConfig = option(DistilConfig, "", changes_result=False)

    @property
    def distillation_folder(self) -> Path:
        """Of the stage that distils the head."""
        return self.folder / "flow_map"

    @property
    def samples_by_map(self) -> bool:
        """Whether samples are drawn with the head's flow map."""
        return self.model.name == "mar" and self.model.mar.sampler.head == "map"

    def equip(self, model: Any, saved: dict[str, Any]) -> None:
        """With the head's flow map, where the sampler asks for it."""
        if self.equipment(saved):
            model.flow_map = FlowMap.load(self.distillation_folder / "map")

    def equipment(self, saved: dict[str, Any]) -> dict[str, str]:
        """The flow map's, where the sampler asks for it; a :class:`UserError` where there is none, or of another generator's head."""
        folder, remedy = self.distillation_folder / "map", f"run `{self.command('distil_head')}`"
        if not self.samples_by_map:
            return {}
        if not (folder / "config.json").is_file():
            raise UserError(f"there is no flow map at {folder}: {remedy}, or write model.mar.sampler.head=flow")
        kept = read_json(folder / "config.json", "flow map")
        if kept.get("generator") != saved.get("fingerprint"):
            raise UserError(
                f"the flow map in {folder} is of another generator's head than that in {self.folder / 'generator'}: "
                f"delete {folder.parent} and {remedy}"
            )
        return {"flow map": str(kept.get("fingerprint"))}

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
