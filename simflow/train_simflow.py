"""Train an autoencoder together with a flow over its latents, from scratch (SimFlow, arXiv 2512.04084).

    python -m simflow.train_simflow [--preset digits_simflow] [--dry-run] [option=value ...]

Writes ``<run_dir>/ae`` as stage 2 does, and ``<run_dir>/simflow/generator``, the flow, which ``python -m simflow generate`` samples from
without a stage 3. Options of sampling and its evaluation (``sample.cfg=[1,2]``) are those of ``generate``; ``scripts/train_simflow.sh`` takes
them behind a ``--``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowprior.errors import UserError, entry_point
from flowprior.run.config import build_config, option, registry_section
from flowprior.run.run_folder import RunFolder
from flowprior.run.written import read_yaml
from simflow.config import JOINT_PRESETS, SimFlowStageConfig
from simflow.regulariser import JointFlowConfig
from tokenizer.config import AEConfig
from tokenizer.regularisers import REGULARISERS
from tokenizer.train_ae import run_stage

PRESETS = JOINT_PRESETS
DEFAULT_PRESET = "digits_simflow"
OTHER_POSTERIORS = ("kl", "softvq", "soft_pq")

JointRegulariserConfig = registry_section(
    "JointRegulariserConfig",
    "name",
    "simflow",
    {**REGULARISERS, "simflow": JointFlowConfig},
    "what acts on the latents",
    several=True,
)


@dataclass
class SimFlowAEConfig(AEConfig):
    """Stage 2 with the flow beside the autoencoder."""

    regulariser: JointRegulariserConfig = option(JointRegulariserConfig, "")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.regulariser.name.split("+")
        if "simflow" not in names:
            raise ValueError(
                f"regulariser.name is {self.regulariser.name} and this command trains a flow: write simflow, alone or joined by + with others, "
                "or run `python -m tokenizer.train_ae`"
            )
        others = [name for name in names if name in OTHER_POSTERIORS]
        fixed = self.regulariser.simflow.variance == "fixed"
        others += ["model.gaussian=true, without regulariser.simflow.variance=learned,"] * (
            self.model.gaussian and fixed
        )
        others += [f"model.latent_map.name={self.model.latent_map.name}"] * (self.model.latent_map.name != "none")
        if others:
            raise ValueError(f"simflow has a posterior of its own, and {others[0]} brings another: leave one out")
        std = self.regulariser.simflow.std
        if self.model.posterior_std and (not fixed or self.model.posterior_std != std):
            own = f"std {std:g}" if fixed else "a learned variance"
            raise ValueError(
                f"model.posterior_std is {self.model.posterior_std}, and simflow's posterior has {own}: leave out the former"
            )

    def check_run(self) -> None:
        alone = RunFolder(self.run_dir, SimFlowStageConfig.NAME)
        if alone.has_begun():
            raise UserError(f"{alone.path} holds a flow that was trained on cached latents: {alone.remedy}")


def ae_config_of(run: Path) -> AEConfig:
    """What the autoencoder of ``run`` was trained with; a :class:`UserError` where there is none."""
    file = run / "ae" / "config.yaml"
    if not (file.is_file() and (run / "ae" / "autoencoder").is_dir()):
        raise UserError(
            f"there is no trained autoencoder at {run / 'ae'}: run `bash scripts/train_ae.sh run_dir={run}`"
        )
    values = read_yaml(file)
    joint = "simflow" in values.get("regulariser", {}).get("name", "").split("+")
    return build_config(SimFlowAEConfig if joint else AEConfig, values, str(file))


@entry_point
def main() -> None:
    run_stage(SimFlowAEConfig, PRESETS, __doc__, DEFAULT_PRESET)


if __name__ == "__main__":
    main()
