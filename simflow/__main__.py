"""The commands of stage 3 with the autoregressive flow."""

from flowprior.errors import UserError
from flowprior.run.files import read_json
from generation import train
from generation.commands import run
from simflow import likelihood
from simflow.config import SimFlowStageConfig


def train_alone(stage: type[SimFlowStageConfig]) -> None:
    """train the generator on cached latents"""
    config = stage.read(train.__doc__)
    file = config.folder / "generator" / "config.json"
    if file.is_file() and read_json(file, "generator").get("about", {}).get("trained") == "with the autoencoder":
        raise UserError(
            f"the flow in {file.parent} was trained with its autoencoder: to train another on the latents of that, write run_dir=<another folder> "
            f"autoencoder={config.autoencoder_folder}"
        )
    train.main(stage)


COMMANDS = {"train": train_alone, "likelihood": likelihood.main}

if __name__ == "__main__":
    run(SimFlowStageConfig, COMMANDS)
