"""What the discriminator minimises, and the views that it sees: which kinds of augmentation, for whom, and how strong."""

import itertools

import pytest
import torch
from torch import nn

from flowprior.distributed import World
from flowprior.run.config import build_config, changed_options, to_dict
from flowprior.run.presets import read_preset
from flowprior.training.config import TrainConfig
from flowprior.training.randomness import StepRandom
from tokenizer.config import PRESETS, AEConfig
from tokenizer.losses.adversarial import AdversarialConfig, Adversary
from tokenizer.losses.diff_augment import DRAWS, KINDS, diff_augment

SIDE, IMAGES = 16, 6


def build(**options) -> Adversary:
    torch.manual_seed(0)
    small = {"weight": 0.2, "discriminator": {"name": "patchgan", "patchgan": {"width": 4, "layers": 1}}}
    config = build_config(AdversarialConfig, small | options)
    return Adversary(config, SIDE, TrainConfig(steps=9), World())


@pytest.fixture
def real_and_fake(generator):
    return [torch.rand(IMAGES, 3, SIDE, SIDE, generator=generator) * 2 - 1 for _ in range(2)]


def kinds_in(adversary: Adversary, images: torch.Tensor, view: torch.Tensor, name: str, step: int) -> set[str]:
    """Which kinds of augmentation have made ``view`` of ``images``, by trying all of them with the step's numbers."""
    draws = StepRandom(0, step).uniform(f"weak view of {name}", IMAGES, DRAWS)
    subsets = itertools.chain.from_iterable(itertools.combinations(KINDS, n) for n in range(len(KINDS) + 1))
    fitting = [set(kinds) for kinds in subsets if torch.equal(diff_augment(images, draws, kinds, 0.2), view)]
    assert len(fitting) == 1
    return fitting[0]


def test_every_kind_is_there_in_half_of_the_batches_for_real_and_fake_independently(real_and_fake):
    adversary, steps = build(), 400
    real, fake = real_and_fake
    rows = []
    for step in range(steps):
        views = [
            adversary.weak_view(images, name, StepRandom(0, step))
            for images, name in ((real, "images"), (fake, "reconstructions"))
        ]
        found = [
            kinds_in(adversary, images, view, name, step)
            for images, view, name in ((real, views[0], "images"), (fake, views[1], "reconstructions"))
        ]
        rows.append([[kind in kinds for kind in KINDS] for kinds in found])
    drawn = torch.tensor(rows, dtype=torch.float64).flatten(1)  # (steps, 6): real's three kinds, fake's three
    five_sigma = 5 * 0.5 / steps**0.5
    assert (drawn.mean(0) - 0.5).abs().max() < five_sigma
    covariance = torch.cov(drawn.T) - torch.diag(torch.cov(drawn.T).diagonal())
    assert covariance.abs().max() < 5 * 0.25 / steps**0.5


@pytest.mark.parametrize("probability, kinds", [(0.0, ()), (1.0, KINDS)])
def test_a_probability_of_none_or_all_leaves_nothing_to_chance(probability, kinds, real_and_fake):
    adversary, random = build(augment_probability=probability, augment=list(KINDS)), StepRandom(0, 3)
    draws = random.uniform("weak view of images", IMAGES, DRAWS)
    expected = diff_augment(real_and_fake[0], draws, kinds, 0.2)
    assert torch.equal(adversary.weak_view(real_and_fake[0], "images", random), expected)


def test_kinds_are_drawn_once_a_batch_however_it_is_cut(real_and_fake):
    adversary, images = build(), real_and_fake[0]
    for step in range(8):
        whole = adversary.weak_view(images, "images", StepRandom(0, step))
        parts = [adversary.weak_view(p, "images", StepRandom(0, step, n, 3)) for n, p in enumerate(images.chunk(3))]
        torch.testing.assert_close(torch.cat(parts), whole)


def test_the_strong_view_has_every_kind_in_every_batch_and_half_of_the_side_cut_out(real_and_fake):
    adversary, images = build(), real_and_fake[0]
    for step in range(10):
        random = StepRandom(0, step)
        draws = random.uniform("strong view of images", IMAGES, DRAWS)
        expected = diff_augment(images, draws, KINDS, 0.5)
        assert torch.equal(adversary.strong_view(images, "images", random), expected)
    assert not torch.equal(draws, random.uniform("strong view of reconstructions", IMAGES, DRAWS))


class Mean(nn.Module):
    """Logits that can be followed by hand: the mean of every channel."""

    def __init__(self):
        super().__init__()
        self.trained = nn.Linear(1, 1)

    def forward(self, images):
        return images.mean((2, 3))


def test_the_loss_is_a_weight_of_game_and_lecam_and_beside_them_that_of_consistency(real_and_fake):
    adversary = build(game_weight=0.2, lecam_weight=0.001, consistency_weight=4.0)
    adversary.discriminator = Mean()
    adversary.lecam.update(torch.tensor(0.3), torch.tensor(-0.2))
    (real, fake), random = real_and_fake, StepRandom(0, 5)
    terms = adversary.discriminator_terms(real, fake, random)
    weak, strong = (
        [view(images, name, random).mean((2, 3)) for images, name in ((real, "images"), (fake, "reconstructions"))]
        for view in (adversary.weak_view, adversary.strong_view)
    )
    hinge = sum((1 - x).clamp_min(0).sum() for x in weak[0]) + sum((1 + x).clamp_min(0).sum() for x in weak[1])
    hinge = hinge / (2 * 3 * IMAGES)
    lecam = (weak[0] + 0.2).clamp_min(0).square().mean() + (0.3 - weak[1]).clamp_min(0).square().mean()
    consistency = sum((a - b).square().sum() for a, b in zip(weak, strong)) / (2 * 3 * IMAGES)
    expected = 0.2 * (hinge + 0.001 * lecam) + 4 * consistency
    assert terms["discriminator"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert consistency > 0 and lecam > 0


def test_the_imagenet_presets_have_the_published_weights_views_and_moments():
    for name in sorted(file.stem for file in PRESETS.glob("imagenet*.yaml")):
        config = build_config(AEConfig, read_preset(PRESETS / f"{name}.yaml", PRESETS))
        gan = config.loss.adversarial
        assert (gan.game_weight, gan.lecam_weight, gan.consistency_weight) == (0.2, 0.001, 4.0)
        assert (gan.augment_probability, gan.cutout, gan.strong_cutout) == (0.5, 0.2, 0.5)
        assert set(gan.augment) == set(KINDS) and gan.optim.betas == (0.9, 0.95) and config.data.crop == "random"


def test_a_run_begun_with_the_views_of_before_is_refused_but_one_without_a_discriminator_is_not():
    for weight, rows in ((0.2, 2), (0.0, 0)):
        new = to_dict(build_config(AEConfig, {"loss": {"adversarial": {"weight": weight}}}))
        old = to_dict(build_config(AEConfig, {"loss": {"adversarial": {"weight": weight}}}))
        del old["loss"]["adversarial"]["augment_probability"], old["loss"]["adversarial"]["strong_cutout"]
        del old["loss"]["adversarial"]["game_weight"]  # 1, as it was
        found = changed_options(AEConfig, old, new)
        assert len(found) == rows and all(row.startswith("loss.adversarial.") for row in found)
