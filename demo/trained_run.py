"""What a page needs of a run's folder: autoencoder, generators, flow prior, and some images with the deviation of their latents."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowprior.data.chosen_images import ChosenImages
from flowprior.data.images import ImageConfig, open_images
from flowprior.distributed import World, best_device
from flowprior.errors import UserError
from flowprior.flow.prior import FlowPrior
from flowprior.notes import note
from flowprior.run.config import build_config
from flowprior.run.files import read_tensors
from flowprior.run.written import read_yaml
from generation.autoencoder import load_autoencoder
from generation.config import GenerationConfig
from generation.generate import load_drawer
from generation.sample_drawer import SampleDrawer
from mar.config import MARStageConfig
from simflow.config import SimFlowStageConfig
from simflow.train_simflow import ae_config_of
from sit.config import SiTStageConfig
from tokenizer.autoencoder import Autoencoder
from tokenizer.opening import Tokenizer
from tokenizer.reconstruct import encoded

GENERATORS = {
    "mar": ("MAR", MARStageConfig),
    "sit": ("SiT", SiTStageConfig),
    "simflow": ("Autoregressive flow", SimFlowStageConfig),
}
MEASURED_IMAGES, EXAMPLES = 512, 10
NOISE = "noise on latents, and images to choose from"


@dataclass
class TrainedGenerator:
    """A generator that can draw.

    Attributes:
        title: as the page shows it.
        config: of its stage.
        drawer: draws its images.
        class_names: of its classes, by number.
        saved: its ``config.json``.
    """

    title: str
    config: GenerationConfig
    drawer: SampleDrawer
    class_names: list[str]
    saved: dict[str, Any]

    @property
    def sampler(self) -> Any:
        """What it samples with: the section ``sampler`` of its options."""
        return self.drawer.bundle.model.config.sampler

    def sample_by(self, sampler: Any) -> None:
        """Sample with other options from now on; a :class:`UserError` where they need what the run does not have."""
        name = self.saved["generator"]["name"]
        section = replace(getattr(self.config.model, name), sampler=sampler)
        config = replace(self.config, model=replace(self.config.model, **{name: section}))
        config.equip(self.drawer.bundle.model, self.saved)
        self.drawer.bundle.model.to(self.drawer.world.device).config.sampler = sampler

    def otherwise(self) -> str:
        """A sentence on what is drawn otherwise than the sampler's options say; empty where nothing is."""
        if not hasattr(self.sampler, "ar_steps"):
            return ""
        steps, tokens = self.sampler.ar_steps, self.drawer.bundle.model.tokens
        return f"ar_steps={steps} is more than the {tokens} tokens: {tokens} steps are made." if steps > tokens else ""


@dataclass
class TrainedRun:
    """A run's folder, opened.

    Attributes:
        folder: of the run.
        autoencoder: on the best device.
        examples: some of the images that the autoencoder is measured on, or that the generators were trained on where it lies elsewhere, uint8
            ``(n, 3, H, H)``; none where the data are gone.
        deviation: of latents over images, ``(T, C)``; None without images.
        generators: by their name.
        prior: the flow prior, and features of its target ``(N, C)``; None without stage 1.
        left_out: what is not there, and why.
    """

    folder: Path
    autoencoder: Tokenizer
    examples: Tensor | None = None
    deviation: Tensor | None = None
    generators: dict[str, TrainedGenerator] = field(default_factory=dict)
    prior: tuple[FlowPrior, Tensor] | None = None
    left_out: dict[str, str] = field(default_factory=dict)


def open_run(folder: Path) -> TrainedRun:
    """Load all that the run holds; what it lacks is said.

    Raises:
        UserError: it holds no autoencoder and no generator that names one, or something in it is damaged.
    """
    world = World(device=best_device())
    if not folder.is_dir():
        raise UserError(f"there is no run at {folder}: bash scripts/quickstart.sh makes one at runs/digits")
    own = (folder / "ae" / "autoencoder").is_dir()
    run, data = (with_its_autoencoder if own else with_the_generators_autoencoder)(folder, world)
    for name, (title, stage) in GENERATORS.items():
        if (folder / name / "generator" / "config.json").is_file():
            run.generators[name] = open_generator(stage, folder, title, data, world)
        else:
            run.left_out[title] = f"{folder / name} holds no trained generator"
    prior, features = folder / "flowhead" / "prior", folder / "flowhead" / "target_samples.safetensors"
    if prior.is_dir() and features.is_file():
        run.prior = FlowPrior.load(prior).to(world.device), read_tensors(features, "target's features")["samples"]
    else:
        run.left_out["flow prior"] = f"{folder / 'flowhead'} holds none"
    for what, why in run.left_out.items():
        note(f"{what}: left out, since {why}")
    return run


def with_its_autoencoder(folder: Path, world: World) -> tuple[TrainedRun, ImageConfig]:
    """A run that trained or imported its autoencoder, and the data of its training; the examples are those that it is measured on."""
    run = TrainedRun(folder, Autoencoder.load(folder / "ae" / "autoencoder").requires_grad_(False).to(world.device))
    data = ImageConfig(size=run.autoencoder.config.image_size)
    try:
        if not (folder / "ae" / "config.yaml").is_file():
            raise UserError(f"{folder / 'ae'} does not say which images the autoencoder was trained on")
        ae_config = ae_config_of(folder)
        data = ae_config.data
        run.examples, run.deviation = look_at(run.autoencoder, ae_config.held_out_data())
    except UserError as error:
        run.left_out[NOISE] = str(error)
    return run, data


def with_the_generators_autoencoder(folder: Path, world: World) -> tuple[TrainedRun, ImageConfig]:
    """A run whose generators were trained on an autoencoder elsewhere, and the data of their training, which the examples are from."""
    for name, (_, stage) in GENERATORS.items():
        if (folder / name / "config.yaml").is_file():
            config = config_of(stage, folder)
            if not config.autoencoder:
                continue
            run = TrainedRun(folder, load_autoencoder(config, world.device))
            try:
                run.examples, run.deviation = look_at(run.autoencoder, config.data)
            except UserError as error:
                run.left_out[NOISE] = str(error)
            return run, config.data
    raise UserError(
        f"there is no autoencoder at {folder / 'ae'}, and no generator that names one elsewhere: run `bash scripts/train_ae.sh run_dir={folder}`"
    )


def config_of(stage: type[GenerationConfig], folder: Path) -> GenerationConfig:
    """What the run's generator was trained with, in the folder where the run is now."""
    file = folder / stage.NAME / "config.yaml"
    return build_config(stage, read_yaml(file) | {"run_dir": str(folder)}, str(file))


def look_at(autoencoder: Tokenizer, data: ImageConfig) -> tuple[Tensor, Tensor]:
    """Examples of the images, and the deviation of the latents over images."""
    images = open_images(data)
    if len(images) < 2:
        raise UserError("there are fewer than two images")
    chosen = torch.linspace(0, len(images) - 1, min(MEASURED_IMAGES, len(images))).long().tolist()
    pixels, latents = zip(*encoded(autoencoder, ChosenImages(images, chosen), 0, "latents of some images"))
    pixels = torch.cat(pixels)
    return pixels[:: -(-len(pixels) // EXAMPLES)], torch.cat(latents).std(0)


def open_generator(
    stage: type[GenerationConfig], folder: Path, title: str, data: ImageConfig, world: World
) -> TrainedGenerator:
    """The run's generator with the sampler of its own config; of one that was trained with the autoencoder, with the default."""
    if (folder / stage.NAME / "config.yaml").is_file():
        config = config_of(stage, folder)
    else:
        config = stage(run_dir=str(folder), data=replace(data, flip=False, crop="centre"))
    drawer, saved = load_drawer(config, world)
    names = saved["about"].get("class_names") or [str(i) for i in range(drawer.bundle.model.num_classes)]
    return TrainedGenerator(title, config, drawer, [str(name) for name in names], saved)
