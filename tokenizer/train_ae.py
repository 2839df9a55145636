"""Stage 2: train an autoencoder whose latents the frozen flow prior shapes.

    python -m tokenizer.train_ae [--preset digits] [--dry-run] [option=value ...]

Writes ``<run_dir>/ae``: ``autoencoder/`` (the averaged weights), pictures of reconstructions, and the log.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from flowprior.data.embedded import EMBEDDED
from flowprior.data.images import ImageSource, open_images, shared_fingerprint
from flowprior.data.loader import training_batches
from flowprior.distributed import World, distributed_world
from flowprior.errors import UserError, entry_point
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.notes import note
from flowprior.run.files import file_sha256
from flowprior.run.presets import config_from_command_line
from flowprior.run.run_folder import RunFolder, Stopwatch, peak_memory_gb
from flowprior.training.loop import TrainingLoop
from flowprior.training.randomness import seed_global_generators
from tokenizer.autoencoder import Autoencoder
from tokenizer.config import PRESETS, AEConfig, find_ae_preset
from tokenizer.dry_run import describe_step
from tokenizer.features import build_features
from tokenizer.features.base import FeatureContext
from tokenizer.losses.adversarial import Adversary
from tokenizer.losses.perceptual import PerceptualLoss, vgg_place
from tokenizer.metrics.lpips import LPIPSMeter
from tokenizer.monitor import Monitor
from tokenizer.objective import AutoencoderObjective
from tokenizer.regularisers.base import RegulariserContext

MAKE_PRIOR = "bash scripts/train_flowhead.sh"
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@entry_point
def main() -> None:
    run_stage(AEConfig, PRESETS, __doc__)


def run_stage(config_class: type[AEConfig], presets: Path, description: str, default: str = "digits") -> None:
    """What the command does, for stage 2 or for one that is based on it.

    Args:
        config_class: :class:`AEConfig`, or one with further regularisers.
        presets: folder of its presets.
        description: for ``--help``.
        default: the preset where none is named.
    """
    config = config_from_command_line(config_class, presets, description, find=find_ae_preset, default=default)
    if config.dry_run:
        print(dry_run(config))
        return
    config.check_run()
    folder = RunFolder(config.run_dir, "ae", product="autoencoder")
    with distributed_world() as world, folder.held(world):
        prior = find_prior(config)
        images = open_images(config.data, config.train.seed)
        measured = config.held_out_data()
        held_out = images if measured == config.data else open_images(measured)  # without augmentation in either case
        fingerprint = shared_fingerprint(images, world)
        inputs = {"data": fingerprint} | ({"prior": prior.fingerprint} if prior else {})
        folder.open(
            config, world, inputs | {what: file_sha256(file)[:16] for what, file in config.weight_files().items()}
        )
        if folder.is_complete():
            folder.say_complete()
        else:
            if world.is_main:
                for told in filter(None, (config.says_of_features(), config.says_of_held_out(held_out, images))):
                    note(told)
            train(config, folder, world, images, held_out, prior)


def build_objective(
    config: AEConfig, folder: Path | None, world: World, num_classes: int, prior: FlowPrior | None
) -> AutoencoderObjective:
    """Autoencoder, losses and regularisers as the config asks for them, with weights that depend on the seed alone.

    Without a folder, features and LPIPS keep random weights: everything is there to be counted.
    """
    features = None
    if config.takes_features:
        features = build_features(config.features, config.data.size)
        if folder is not None:
            features.prepare(FeatureContext(config.train.seed, folder, world))
    seed_global_generators(config.train.seed, "regularisers and discriminator")
    context = RegulariserContext(prior, config.model, num_classes, config.train.seed, world, features, config.train)
    regularisers = [section.build(context) for section in config.regulariser.chosen]
    adversarial = config.loss.adversarial
    adversary = Adversary(adversarial, config.data.size, config.train, world) if adversarial.weight else None
    model = config.model
    for regulariser in regularisers:
        model = regulariser.adapt(model)
    seed_global_generators(config.train.seed, "autoencoder")
    autoencoder, perceptual = Autoencoder(model), None
    if config.loss.perceptual_weight:
        perceptual = PerceptualLoss()
        if folder is not None:
            perceptual.load(config.loss.perceptual_weights)
    return AutoencoderObjective(
        autoencoder,
        regularisers,
        config.loss,
        adversary,
        features,
        world,
        config.train.log_steps,
        perceptual,
        config.train.accumulation,
    ).to(world.device)


def dry_run(config: AEConfig) -> str:
    """What a step would cost, counted on the meta device: nothing is fetched, computed or written. A prior that is not there yet is
    taken to have the paper's size."""
    untrained = {"pretrained": False, "weights": ""}
    dino = replace(config.loss.adversarial.discriminator.dino, **untrained)
    discriminator = replace(config.loss.adversarial.discriminator, dino=dino)
    config = replace(
        config,
        model=replace(config.model, encoder=replace(config.model.encoder, **untrained)),
        loss=replace(config.loss, adversarial=replace(config.loss.adversarial, discriminator=discriminator)),
        features=replace(config.features, timm=replace(config.features.timm, **untrained)),
    )
    needed = any(section.needs_prior for section in config.regulariser.chosen)
    there = needed and (config.prior_folder / "config.json").is_file()
    sizes = find_prior(config).velocity.sizes if there else {"channels": config.model.channels}
    world, prior = World(device=torch.device("meta")), None
    with torch.device("meta"):
        if needed:
            prior = FlowPrior(
                VelocityMLP(**sizes), TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, sizes["channels"]))
            )
        objective = build_objective(config, None, world, 1, prior)
        counted = describe_step(objective, config.train, config.optim)
    return (
        counted
        if there or not needed
        else f"{counted}\nno prior at {config.prior_folder} yet: one of the paper's size was counted"
    )


def train(
    config: AEConfig,
    folder: RunFolder,
    world: World,
    images: ImageSource,
    held_out: ImageSource,
    prior: FlowPrior | None,
) -> None:
    """Train, save the averaged weights, and mark the stage complete."""
    stopwatch = Stopwatch(folder.path)
    objective = build_objective(config, folder.path, world, images.num_classes, prior)
    if world.is_main:
        if config.data.has_subsets:  # of others, their place has said so
            print(f"{config.data.source} has {len(images)} images of {images.num_classes} classes")
        if order := images.says_of_order():
            print(f"order: {order}")
        note_missing_weights(config)
        for line in filter(None, (regulariser.note for regulariser in objective.regularisers)):
            print(line)
    autoencoder = objective.autoencoder
    loop = TrainingLoop(
        objective, objective.averaged, config.train, config.optim, world, folder.path, description="autoencoder"
    )
    target_samples = config.prior_folder.parent / "target_samples.safetensors"
    # Against their own originals: a reference of all held-out images does not compare with the rFID of a few.
    meters = config.meter_context(min(config.monitor.images, len(held_out)), world.device)._replace(reference="")
    monitor = Monitor(config.monitor, folder, held_out, prior, target_samples, meters, world)

    def evaluate(step: int) -> dict[str, float]:
        return monitor(autoencoder, step) if world.is_main else {}

    with stopwatch.kept(world):
        batches = training_batches(images, config.train, world, loop.step)
        metrics = loop.run(batches, evaluate)
    if world.is_main:
        with loop.averaged_weights():
            metrics = metrics or monitor(autoencoder.eval(), loop.step)
            autoencoder.about = {
                "data": {name: getattr(config.data, name) for name in ("size", "crop", "source")}
                | {"num_classes": images.num_classes},
                "regularisers": [r.describe() for r in objective.regularisers],
                "prior": prior.fingerprint if prior else None,
                "latents": {name: value for name, value in metrics.items() if name.startswith("latent_")},
                "latent_std": metrics["latent_std"],
            }
            autoencoder.save(folder.path / "autoencoder")
            for regulariser in objective.regularisers:
                regulariser.hand_on(Path(config.run_dir), autoencoder, images)
            folder.complete(
                {
                    "fingerprint": autoencoder.fingerprint,
                    **metrics,
                    "seconds": stopwatch.seconds(),
                    "peak_memory_gb": peak_memory_gb(),
                }
            )
        kind = "held-out" if config.holds_out else "training"
        psnr = f"PSNR {metrics['psnr']:.2f} dB on {meters.image_count} {kind} images, " if "psnr" in metrics else ""
        print(
            f"autoencoder: {folder.path / 'autoencoder'}  "
            f"({psnr}{stopwatch.seconds():.0f} s, peak {peak_memory_gb():.1f} GB)"
        )


def note_missing_weights(config: AEConfig) -> None:
    """Say before a long training, rather than after it, that its evaluation will lack weights, or what the extractor's are of."""
    vgg = config.loss.perceptual_weights
    if "lpips" in config.evaluate.metrics and not vgg_place(vgg).is_file():
        try:
            LPIPSMeter.network(vgg)
        except UserError as error:
            note(f"the evaluation after training will stop: {error}")
    if not config.evaluate.extractor:
        return
    if caveat := config.says_of_extractor():
        note(caveat)
    if config.evaluate.extractor in EMBEDDED and not config.evaluate.weights:
        return
    from flowprior.metrics import missing_weights

    if missing := missing_weights(config.evaluate.open_extractor()):
        note(f"the evaluation after training will stop: {missing}")


def find_prior(config: AEConfig) -> FlowPrior | None:
    """The frozen prior; without one a run whose regularisers need none goes on unmeasured against it.

    Raises:
        UserError: a regulariser needs a prior and there is none, or the prior is over other channels.
    """
    needed = any(section.needs_prior for section in config.regulariser.chosen)
    if not (config.prior_folder / "config.json").is_file():
        if not (needed or config.prior):
            return None
        if not HUB_NAME.fullmatch(config.prior) or config.prior_folder.exists():
            raise UserError(
                f"there is no flow prior at {config.prior_folder}: run `{MAKE_PRIOR} run_dir={config.run_dir}` first, with the same PRESET (its "
                "family's, where stage 1 has none of that name), or write prior=<folder> or regulariser.name=none"
            )
    prior = FlowPrior.from_pretrained(config.prior_folder)
    if prior.channels != config.model.channels:
        if not needed:
            return None
        raise UserError(
            f"the prior in {config.prior_folder} is over {prior.channels} channels and model.channels is {config.model.channels}: "
            f"train a prior with channels={config.model.channels}, or write model.channels={prior.channels}"
        )
    return prior


if __name__ == "__main__":
    main()
