"""MAR's config of stage 3: the registry of the generators in this room, what samples are drawn with, and what earlier runs count as."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.config import option, registry_section
from flowprior.run.files import read_json
from flowprior.run.run_folder import RunFolder
from flowprior.run.written import read_yaml
from generation.config import GenerationConfig
from mar.distillation import DistilConfig
from mar.flow_map import FlowMap
from mar.guided import GuidedTransformer
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
    distil_guidance: DistilConfig = option(DistilConfig, "", changes_result=False)

    @property
    def distillation_folder(self) -> Path:
        """Of the stage that distils the head."""
        return self.folder / "flow_map"

    @property
    def guided_folder(self) -> Path:
        """Of the stage that distils guidance."""
        return self.folder / "guided"

    @property
    def samples_by_map(self) -> bool:
        """Whether samples are drawn with the head's flow map, or with what is distilled after it."""
        return self.model.name == "mar" and self.model.mar.sampler.head == "map"

    @property
    def samples_in_one_pass(self) -> bool:
        """Whether samples are drawn with the transformer that guidance is distilled into."""
        return self.samples_by_map and self.model.mar.sampler.one_pass

    def check_distilled_guidance(self) -> None:
        """A :class:`UserError` where the samples are drawn by what is distilled, at a guidance scale that it is not distilled for."""
        if not self.samples_by_map:
            return
        section = "distil_guidance" if self.samples_in_one_pass else "distil"
        low, high = getattr(self, section).guidance
        least, most = min(self.sample.cfg), max(self.sample.cfg)
        if not low <= least <= most <= high:
            raise UserError(
                f"sample.cfg has guidance scales from {least:g} to {most:g}, and {section}.guidance=[{low:g},{high:g}] is what samples are "
                f"distilled for: write {section}.guidance=[{min(low, least):g},{max(high, most):g}], or leave the others out of sample.cfg"
            )

    def equip(self, model: Any, saved: dict[str, Any]) -> None:
        """With the head's flow map, or the guided transformer, where the sampler asks for it."""
        if self.samples_in_one_pass:
            folder, _ = self._guided(saved)
            model.guided = GuidedTransformer.load(folder, model)
        elif self.samples_by_map:
            model.flow_map = self.load_flow_map(saved)

    def equipment(self, saved: dict[str, Any]) -> dict[str, str]:
        """What the sampler asks for, by name; a :class:`UserError` where it is not there, or of another generator."""
        if self.samples_in_one_pass:
            return {"guided transformer": self._guided(saved)[1]}
        return {"flow map": self._flow_map(saved)[1]} if self.samples_by_map else {}

    def load_flow_map(self, saved: dict[str, Any]) -> FlowMap:
        """The flow map of the generator whose ``config.json`` is ``saved``; a :class:`UserError` where there is none."""
        return FlowMap.load(self._flow_map(saved)[0])

    def _flow_map(self, saved: dict[str, Any]) -> tuple[Path, str]:
        return self._distilled(self.distillation_folder / "map", "flow map", "distil_head", "head=flow", saved)

    def _guided(self, saved: dict[str, Any]) -> tuple[Path, str]:
        folder = self.guided_folder / "transformer"
        return self._distilled(folder, "guided transformer", "distil_guidance", "one_pass=false", saved)

    def _distilled(
        self, folder: Path, what: str, command: str, without: str, saved: dict[str, Any]
    ) -> tuple[Path, str]:
        """Folder and fingerprint of what was distilled from the generator in ``saved``; else a :class:`UserError`."""
        remedy = f"run `{self.command_here(command)}`"
        if not (folder / "config.json").is_file():
            raise UserError(f"there is no {what} at {folder}: {remedy}, or write model.mar.sampler.{without}")
        kept = read_json(folder / "config.json", what)
        if kept.get("generator") != saved.get("fingerprint"):
            raise UserError(
                f"the {what} in {folder} is of another generator than that in {self.folder / 'generator'}: "
                f"delete {folder.parent} and {remedy}"
            )
        return folder, str(kept.get("fingerprint"))

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
