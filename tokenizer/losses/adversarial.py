"""The adversarial term: a discriminator, which an optimiser of its own trains as an auxiliary network, and its verdict on reconstructions."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from flowprior.distributed import World
from flowprior.errors import NonFiniteLoss
from flowprior.run.config import Section, option
from flowprior.training.auxiliary_network import AuxiliaryNetwork
from flowprior.training.checkpoint import Stateful
from flowprior.training.config import TrainConfig
from flowprior.training.optim import AuxiliaryOptimConfig
from flowprior.training.randomness import StepRandom
from tokenizer.losses.consistency import consistency_loss
from tokenizer.losses.diff_augment import DRAWS, KINDS, diff_augment
from tokenizer.losses.discriminators import DiscriminatorConfig, build_discriminator
from tokenizer.losses.discriminators.base import exact_weights
from tokenizer.losses.gan import GAN_LOSSES
from tokenizer.losses.lecam import LeCam
from tokenizer.losses.schedule import ramp


@dataclass
class AdversarialConfig(Section):
    """The adversarial loss; off at weight 0."""

    SWITCH: ClassVar[str] = "weight"
    weight: float = option(0.0, "weight of the adversarial loss of reconstructions; the paper's is 0.2", least=0)
    game_weight: float = option(
        1.0,
        "weight of the game and LeCam in the discriminator's own loss, next to consistency; published: 0.2",
        least=0,
    )
    kind: Literal["hinge", "non_saturating", "vanilla"] = option(
        "hinge", "the game: hinge, non_saturating or vanilla (minimax)"
    )
    start_step: int = option(
        0, "step from which the discriminator is trained and heard; the paper's is 20,000", least=0
    )
    ramp_steps: int = option(0, "steps, from start_step on, over which the loss grows linearly to its weight", least=0)
    adaptive: bool = option(
        False,
        "scale the weight so that both pull equally at the decoder's last layer, reconstruction and discriminator",
    )
    discriminator: DiscriminatorConfig = option(DiscriminatorConfig, "")
    augment: tuple[str, ...] = option(
        KINDS, f"what the discriminator's images go through, of {', '.join(KINDS)}; [] for nothing"
    )
    augment_probability: float = option(
        0.5,
        "probability with which each kind of augment is applied, drawn once a batch, for images and reconstructions apart",
        least=0,
        most=1,
        before="all of these always, to both alike",
    )
    cutout: float = option(0.2, "side of the square that is cut out, as a share of the image's", least=0, most=1)
    strong_cutout: float = option(
        0.5,
        "cutout of the strong view, to which everything in augment is applied, and which consistency compares with the other one",
        least=0,
        most=1,
        before="none, as consistency compared with plain images",
    )
    lecam_weight: float = option(0.0, "weight of LeCam regularisation; the paper's is 0.001", least=0)
    lecam_decay: float = option(0.999, "decay of LeCam's running means", least=0, below=1)
    consistency_weight: float = option(
        0.0, "weight of the logits' consistency between both views; the paper's is 4.0", least=0
    )
    optim: AuxiliaryOptimConfig = option(AuxiliaryOptimConfig, "")

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.augment) - set(KINDS):
            raise ValueError(f"augment is a list of {', '.join(KINDS)}, not of {', '.join(sorted(unknown))}")
        if self.consistency_weight and not self.augment:
            raise ValueError("consistency_weight compares two augmented views: it needs augment")


class Adversary:
    """Discriminator, its optimiser and LeCam's means, alike in every process.

    It is no module, and so no part of what the autoencoder's optimiser trains.

    Args:
        config: see the class.
        image_size: pixels on a side.
        train: of the autoencoder; its steps are the length of the discriminator's schedule.
        world: this process among those of the run.
    """

    def __init__(self, config: AdversarialConfig, image_size: int, train: TrainConfig, world: World) -> None:
        self.config, self.train, self.world = config, train, world
        self.discriminator = build_discriminator(config.discriminator, image_size).to(world.device)
        trained = self.discriminator.trained
        total_steps = max(train.steps, config.start_step)
        self.auxiliary = AuxiliaryNetwork(
            trained, config.optim, total_steps, world, config.start_step, "the discriminator"
        )
        self.lecam, self.game = LeCam(config.lecam_decay).to(world.device), GAN_LOSSES[config.kind]

    def weight_at(self, step: int) -> float:
        """The weight of :meth:`term` in step ``step``; 0 before its start."""
        return self.config.weight * ramp(step, self.config.start_step, self.config.ramp_steps)

    def term(self, reconstruction: Tensor, random: StepRandom) -> Tensor:
        """What the autoencoder minimises, of ``reconstruction (B, 3, H, H)``; the discriminator keeps still."""
        self.discriminator.eval().trained.requires_grad_(False)
        view = self.weak_view(reconstruction, "the autoencoder", random)
        with exact_weights(self.discriminator.trained):
            return self.game.generator(self.discriminator(view).float())

    def update(
        self,
        images: Tensor,
        reconstruction: Tensor,
        step: int,
        autocast: contextlib.AbstractContextManager[None] | None = None,
    ) -> dict[str, Tensor]:
        """One step of the discriminator on this process's ``images`` and their detached reconstructions, both ``(B, 3, H, H)``.

        Args:
            images, reconstruction: in [-1, 1].
            step: of training, from 0.
            autocast: of the forward pass; float32 without.

        Returns:
            Figures to log, of this process.

        Raises:
            NonFiniteLoss: in some process; nothing was stepped.
        """
        slots, trained = self.train.accumulation, self.discriminator.trained
        trained.requires_grad_(True)
        before = [buffer.clone() for buffer in trained.buffers()]
        sums: dict[str, Tensor] = {}
        for slot, (real, fake) in enumerate(zip(images.chunk(slots), reconstruction.chunk(slots))):
            self.discriminator.train()
            trained.train(slot == 0)  # spectral norm makes one power iteration a step, however the batch is cut
            place = slot * self.world.size + self.world.rank
            random = StepRandom(self.train.seed, step, place, slots * self.world.size, self.world.device)
            with autocast or contextlib.nullcontext():
                terms = self.discriminator_terms(real, fake, random)
            (terms["discriminator"] / slots).backward()
            for name, value in terms.items():
                sums[name] = sums.get(name, 0) + value.detach() / slots
        try:
            self.auxiliary.step(sums["discriminator"], step)
        except NonFiniteLoss:
            for buffer, value in zip(trained.buffers(), before):  # spectral norm's, which the forward pass moved
                buffer.copy_(value)
            raise
        means = self.world.all_reduce(torch.stack([sums["logits_real"], sums["logits_fake"]])) / self.world.size
        self.lecam.update(*means)
        return sums

    def discriminator_terms(self, real: Tensor, fake: Tensor, random: StepRandom) -> dict[str, Tensor]:
        """Terms by name, of ``real`` and ``fake (B, 3, H, H)``; ``discriminator`` is what is minimised.

        It is ``game_weight (game + lecam_weight LeCam) + consistency_weight consistency``. Game and LeCam see a weak view of each image, the
        consistency is between the logits of that view and of a strong one.
        """
        config, named = self.config, (("images", real), ("reconstructions", fake))
        views = [self.weak_view(images, name, random) for name, images in named]
        if config.consistency_weight:
            views += [self.strong_view(images, name, random) for name, images in named]
        with exact_weights(self.discriminator.trained):
            logits = self.discriminator(torch.cat(views)).float().chunk(len(views))
        terms = {"game": self.game.discriminator(*logits[:2])}
        loss = terms["game"]
        if config.lecam_weight:
            terms["lecam"] = self.lecam(*logits[:2])
            loss = loss + config.lecam_weight * terms["lecam"]
        loss = config.game_weight * loss
        if config.consistency_weight:
            terms["consistency"] = consistency_loss(torch.cat(logits[:2]), torch.cat(logits[2:]))
            loss = loss + config.consistency_weight * terms["consistency"]
        return {"discriminator": loss, **terms, "logits_real": logits[0].mean(), "logits_fake": logits[1].mean()}

    def weak_view(self, images: Tensor, name: str, random: StepRandom) -> Tensor:
        """``images (B, 3, H, H)`` under those kinds of ``augment`` that this step's draw for ``name`` has chosen for the whole batch."""
        chance = {kind: random.uniform_of_period(f"{kind} in the weak view of {name}", 1) for kind in KINDS}
        kinds = tuple(kind for kind in self.config.augment if chance[kind] < self.config.augment_probability)
        return diff_augment(images, self._draws(f"weak view of {name}", images, random), kinds, self.config.cutout)

    def strong_view(self, images: Tensor, name: str, random: StepRandom) -> Tensor:
        """``images (B, 3, H, H)`` under all of ``augment``, with the larger cut-out."""
        draws = self._draws(f"strong view of {name}", images, random)
        return diff_augment(images, draws, self.config.augment, self.config.strong_cutout)

    def _draws(self, name: str, images: Tensor, random: StepRandom) -> Tensor:
        return random.uniform(name, len(images), DRAWS)

    def saved(self) -> dict[str, Stateful]:
        """What a resumed run needs."""
        return {"discriminator": self.auxiliary, "lecam": self.lecam}
