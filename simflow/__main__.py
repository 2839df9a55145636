"""The commands of stage 3 with the autoregressive flow."""

from pathlib import Path

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.files import read_json
from generation import cache_latents, train
from generation.commands import run
from simflow import likelihood
from simflow.config import SimFlowStageConfig, trained_jointly


def train_alone(stage: type[SimFlowStageConfig]) -> None:
    """train the generator on cached latents"""
    config = stage.read(train.__doc__)
    refuse_joint_run(config)
    if config.start:
        note_other_noise(config)
    elif config.model.tarflow.noise_std and not config.model.tarflow.sampler.denoise:
        note(
            f"samples of a new flow keep the noise that training adds, of {config.model.tarflow.noise_std:g} times the deviation that "
            "cache.scale_per normalises by: where the decoder was not trained on that, write model.tarflow.sampler.denoise=true, or "
            "start=<a flow> to train that one on"
        )
    train.main(stage)


def cache_latents_alone(stage: type[SimFlowStageConfig]) -> None:
    """encode every image once"""
    config = stage.read(cache_latents.__doc__)
    refuse_joint_run(config)
    if posterior_std_of(config.start) == "learned" and config.cache.posterior == "mean":
        note(
            f"the flow in {config.start} learned latents that the encoder's posterior draws, and these are its means. To train it on draws, write "
            "cache.posterior=moments model.tarflow.noise_std=0 model.tarflow.sampler.denoise=false, in a run_dir that holds no other latents"
        )
    cache_latents.main(stage)


def refuse_joint_run(config: SimFlowStageConfig) -> None:
    """A :class:`UserError` where the run's flow was trained with its autoencoder, and another would take its place."""
    file = config.folder / "generator" / "config.json"
    if file.is_file() and trained_jointly(read_json(file, "generator")):
        raise UserError(
            f"the flow in {file.parent} was trained with its autoencoder: to train another on the latents of that, write run_dir=<another folder> "
            f"autoencoder={config.autoencoder_folder}, and start={file.parent} to go on from this one"
        )


def note_other_noise(config: SimFlowStageConfig) -> None:
    """Say where a flow is trained on under another noise than it has learned so far."""
    learned, now = posterior_std_of(config.start), config.model.tarflow.noise_std
    if learned == "learned":
        if now and config.cache.posterior != "mean":
            note(
                f"the flow in {config.start} learned latents as the encoder's posterior draws them, and model.tarflow.noise_std is {now:g}: where "
                "that is not meant, write model.tarflow.noise_std=0 model.tarflow.sampler.denoise=false"
            )
    elif learned and learned != now:
        note(
            f"the flow in {config.start} learned latents with noise of std {learned:g}, and model.tarflow.noise_std is {now:g}: where that is not "
            f"meant, write model.tarflow.noise_std={learned:g} model.tarflow.sampler.denoise=false"
        )


def posterior_std_of(start: str) -> float | str:
    """Of the noise on the latents that the generator in the folder ``start`` was trained with, 0 where there is none; or ``learned``."""
    file = Path(start) / "config.json"
    return read_json(file, "generator").get("about", {}).get("posterior_std", 0) if start and file.is_file() else 0


def check_options(stage: type[SimFlowStageConfig]) -> None:
    """read the options of sampling and evaluation, and do nothing else"""
    stage.read(check_options.__doc__)


COMMANDS = {
    "check_options": check_options,
    "cache_latents": cache_latents_alone,
    "train": train_alone,
    "likelihood": likelihood.main,
}

if __name__ == "__main__":
    run(SimFlowStageConfig, COMMANDS)
