import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowprior import FlowPrior
from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import build_config
from flowprior.run.presets import read_preset
from flowprior.training.randomness import StepRandom
from networks import random_prior
from tokenizer.autoencoder import Encoded
from tokenizer.config import PRESETS, AEConfig
from tokenizer.dry_run import COUNTED_IMAGES, step_cost
from tokenizer.features import build_features
from tokenizer.regularisers.kl import kl_divergence
from tokenizer.train_ae import build_objective, dry_run

NAMES = sorted(file.stem for file in PRESETS.glob("*.yaml"))


def load(name: str) -> AEConfig:
    config = build_config(AEConfig, read_preset(PRESETS / f"{name}.yaml", PRESETS))
    config.run_dir = "runs/of nobody"  # or a dry run would count the prior that a quickstart left in this folder
    return config


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_strictly_a_config_and_its_head_says_the_command_and_what_to_expect(name):
    load(name)
    header = "".join(re.findall(r"^#.*\n", (PRESETS / f"{name}.yaml").read_text(), flags=re.M))
    assert "bash scripts/train_ae.sh" in header
    assert re.search(r"measured|The paper reports|The paper's", header)
    assert "No figures have been measured" not in header or name == "folder"
    if f"PRESET={name}" not in header:
        assert name in ("digits", "imagenet", "digits_semantic")


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("imagenet")])
def test_the_imagenet_presets_have_the_papers_hyper_parameters(name):
    config = load(name)
    assert (config.model.tokens, config.model.channels, config.model.image_size, config.model.patch_size) == (
        64,
        32,
        256,
        16,
    )
    assert config.model.encoder.name == config.model.decoder.name == "vit_large_patch14_dinov2.lvd142m"
    assert config.model.encoder.pretrained and not config.model.decoder.pretrained
    assert (config.train.steps, config.train.global_batch) == (250_000, 256)
    optim, loss = config.optim, config.loss
    assert (optim.lr, optim.betas, optim.weight_decay, optim.warmup_steps) == (1e-4, (0.9, 0.95), 1e-4, 2500)
    assert (optim.final_lr_fraction, optim.clip_norm, optim.ema_decay) == (0.1, 1.0, 0.9999)
    assert (loss.pixel, loss.pixel_weight, loss.perceptual_weight, loss.perceptual_ramp_steps) == ("l2", 1, 1, 10_000)
    gan = loss.adversarial
    assert (gan.weight, gan.kind, gan.start_step, gan.lecam_weight, gan.consistency_weight) == (
        0.2,
        "hinge",
        20_000,
        0.001,
        4,
    )
    assert gan.discriminator.name == "dino" and set(gan.augment) == {"colour", "translation", "cutout"}
    aligned = name in ("imagenet", *(f"imagenet_{target}" for target in ("qwen", "dinov2", "vae", "vq")))
    assert config.regulariser.name == ("flow" if aligned else name.removeprefix("imagenet_"))
    assert config.regulariser.flow.weight == 0.01
    vq = config.regulariser.softvq
    assert (vq.codebooks, vq.size, vq.temperature, vq.entropy_weight) == (4, 8192, 0.07, 0.01)
    assert (vq.entropy_temperature, config.model.tokens % vq.codebooks) == (0.01, 0)


def test_the_kl_baselines_weight_is_the_published_1e_6_of_the_sum_over_an_images_2048_numbers(generator):
    config = load("imagenet_kl")
    mean, logvar = (torch.randn(3, config.model.tokens, config.model.channels, generator=generator) for _ in range(2))
    summed = (
        0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2)).mean()
    )  # over an image's numbers, then images
    weighted = config.regulariser.kl.weight * kl_divergence(mean, logvar)
    assert weighted.item() == pytest.approx(1e-6 * summed.item(), rel=1e-5)


def test_softvqs_features_are_dinov2_ls_with_four_patches_a_token():
    config = load("imagenet_softvq")
    assert config.features.source == "timm" and "vit_large_patch14_dinov2" in config.features.timm.name
    config.features.timm.pretrained = False
    with torch.device("meta"):
        features = build_features(config.features, 256)
    assert (features.width, features.patches) == (1024, 4 * config.model.tokens)


PARAMETERS = {"none": 607_022_880, "kl": 607_022_880 + 1025 * 32, "softvq": 607_022_880 + 4 * 8192 * 32}


@pytest.mark.parametrize("name", [n for n in NAMES if n.startswith("imagenet")])
def test_an_imagenet_preset_builds_the_autoencoder_of_the_paper(name):
    config = load(name)
    config.model.encoder.pretrained = config.features.timm.pretrained = False
    config.loss.perceptual_weight = config.loss.adversarial.weight = 0.0
    needs_prior = any(section.needs_prior for section in config.regulariser.chosen)
    prior = random_prior(32, 40).to("meta") if needs_prior else None
    with torch.device("meta"):
        autoencoder = build_objective(config, None, World(device=torch.device("meta")), 1000, prior).autoencoder
    kind = config.regulariser.name if config.regulariser.name in PARAMETERS else "none"
    assert sum(p.numel() for p in autoencoder.parameters()) == PARAMETERS[kind]


def number(pattern: str, text: str) -> float:
    return float(re.search(pattern, text).group(1).replace(",", ""))


def test_a_dry_run_counts_what_the_parts_are_and_alignment_adds_less_than_5_percent_at_the_papers_size():
    config = load("imagenet_qwen")
    config.loss.perceptual_weight = config.loss.adversarial.weight = 0.0  # with them the share is smaller still
    said = dry_run(config)
    assert number(r"regulariser flow +0 trained +([\d,]+) frozen", said) == 34_978_848
    assert number(r"encoder +([\d,]+) trained", said) == 303_412_224
    assert 0 < number(r"alignment adds ([\d.]+) %", said) < 5
    total = sum(float(v.replace(",", "")) for v in re.findall(r"([\d,.]+) +[\d.]+ %", said))
    assert number(r"all +([\d.,]+)\n", said.split("arithmetic")[1]) == pytest.approx(total, abs=0.5)


def test_a_dry_run_counts_the_online_flow_with_its_own_step():
    config = load("digits_distribution")
    said = dry_run(config)
    prior = number(r"regulariser flow +0 trained +([\d,]+) frozen", said)
    assert number(r"online flow of flow +([\d,]+) trained +0 frozen", said) == prior
    assert number(r"regulariser flow, its own step +([\d.,]+) ", said) > 0
    config.regulariser.flow.objective = "likelihood"
    assert number(r"alignment adds ([\d.]+) %", said) > number(r"alignment adds ([\d.]+) %", dry_run(config))


@pytest.mark.parametrize("scope", ["token", "sequence"])
def test_a_dry_run_counts_what_the_distribution_objective_computes_once(scope):
    config, meta = load("digits_distribution"), World(device=torch.device("meta"))
    config.regulariser.flow.online.scope = scope
    with meta.device:
        prior = FlowPrior(VelocityMLP(8), TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, 8)))
        objective = build_objective(config, None, meta, 1, prior)
        counted = step_cost(objective, config.train).flop["regulariser flow"]
        latents = torch.empty(COUNTED_IMAGES, config.model.tokens, 8, requires_grad=True)
        random = StepRandom(0, config.train.steps + 10**9, device=meta.device)
        with FlopCounterMode(display=False) as counter:
            objective.regularisers[0].term(Encoded(latents, latents, None), {}, random).backward()
    assert counted * COUNTED_IMAGES == counter.get_total_flops()


def test_a_dry_run_says_that_an_opening_adds_what_the_papers_alignment_costs():
    config = load("digits_distribution")
    without = dry_run(config)
    config.regulariser.flow.opening_weight = 0.003
    [line] = set(dry_run(config).splitlines()) - set(without.splitlines())
    assert number(r"in the first (\d+) steps its opening", line) == 799
    likelihood, distribution = (
        number(r"alignment adds ([\d.]+) %", text) for text in (dry_run(load("digits")), without)
    )
    assert number(r"opening adds ([\d.]+) %", line) == pytest.approx(100 * likelihood / (100 + distribution), abs=0.01)


def test_a_dry_run_counts_lpips_and_the_discriminator_too():
    config = load("digits_none")
    config.loss.perceptual_weight = config.loss.adversarial.weight = 1.0
    config.loss.adversarial.discriminator.name = "patchgan"
    said = dry_run(config)
    # VGG-16's convolutions, LPIPS's layers.
    assert number(r"perceptual +0 trained +([\d,]+) frozen", said) == 14_714_688 + 1472
    assert len(re.findall(r"discriminator, (?:for the autoencoder|its own step) +[\d.,]+ ", said)) == 2


def test_a_dry_run_counts_the_arithmetic_of_a_network_that_can_be_counted_by_hand():
    config = load("digits_none")
    config.model.encoder.depth = config.model.decoder.depth = 1
    said = dry_run(config)
    n, w = 16 + 8, 96  # patches and latent tokens, width
    block = 2 * n * (12 * w**2) + 4 * n**2 * w
    encoder = 3 * (block + 2 * 8 * w * 8) + 2 * 2 * 16 * (3 * 8 * 8) * w  # nobody asks for the pixels' gradient
    decoder = 3 * (block + 2 * 8 * 8 * w + 2 * 16 * w * 3 * 8 * 8)
    assert number(r"\n  all +([\d.,]+)\na step", said) == pytest.approx((encoder + decoder) / 1e9, abs=0.051)
    assert number(r"of 64 images: ([\d.,]+) TFLOP", said) == pytest.approx(64 * (encoder + decoder) / 1e12, abs=0.051)


@pytest.mark.parametrize("name", ["digits", "digits_kl", "digits_softvq", "digits_reals", "digits_vavae"])
def test_a_dry_run_of_any_regulariser_reads_and_writes_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dry_run(load(name))
    assert "parameters" in said and "memory" in said and not list(tmp_path.iterdir())


def test_a_dry_run_takes_the_size_of_the_prior_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load("digits")
    prior = random_prior(config.model.channels)
    prior.save(config.prior_folder)
    parameters = sum(p.numel() for p in prior.velocity.parameters())
    assert number(r"regulariser flow +0 trained +([\d,]+) frozen", dry_run(config)) == parameters


@pytest.fixture
def presets(tmp_path) -> Path:
    (tmp_path / "first.yaml").write_text("train: {steps: 5, seed: 1}\noptim: {lr: 0.5}\n")
    (tmp_path / "second.yaml").write_text("base: first\ntrain: {steps: 7}\n")
    (tmp_path / "third.yaml").write_text("base: second\noptim:\n")
    return tmp_path


def test_a_preset_changes_its_base_section_by_section(presets):
    assert read_preset(presets / "second.yaml", presets) == {"train": {"steps": 7, "seed": 1}, "optim": {"lr": 0.5}}
    assert read_preset(presets / "third.yaml", presets)["train"] == {"steps": 7, "seed": 1}


def test_a_preset_of_ones_own_is_based_on_one_beside_it_or_on_a_published_one(presets, tmp_path):
    own = tmp_path / "elsewhere" / "mine.yaml"
    own.parent.mkdir()
    own.write_text("base: first\ntrain: {seed: 3}\n")
    assert read_preset(own, presets)["train"] == {"steps": 5, "seed": 3}
    (own.parent / "yours.yaml").write_text("base: mine.yaml\n")
    assert read_preset(own.parent / "yours.yaml", presets)["train"] == {"steps": 5, "seed": 3}


@pytest.mark.parametrize(
    "text, message",
    [
        ("base: bogus", "no preset 'bogus'.*first, second, third"),
        ("base: third", "based on itself"),
        ("base: [first]", "name of"),
    ],
)
def test_a_base_that_cannot_be_is_refused(presets, text, message):
    (presets / "first.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_preset(presets / "second.yaml", presets)
