"""What is checked: each of the project's objectives at a stated size, with random weights and random data."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.distributed import World
from flowprior.flow.objective import FlowMatchingObjective
from flowprior.flow.online import OnlineFlow, OnlineFlowConfig, OnlineOptimConfig
from flowprior.flow.path import draw_path_of_step
from flowprior.flow.prior import FlowPrior
from flowprior.flow.target_map import TargetMap
from flowprior.flow.velocity import VelocityMLP
from flowprior.run.config import build_config
from flowprior.run.presets import read_preset
from flowprior.training.objective import Objective, StepOutput
from flowprior.training.optim import OptimConfig
from flowprior.training.randomness import StepRandom
from generation.generator import GeneratorObjective
from mar.config import PRESETS as MAR_PRESETS
from mar.config import MARStageConfig
from mar.model import MARConfig
from simflow.config import PRESETS as TARFLOW_PRESETS
from simflow.config import SimFlowStageConfig
from simflow.model import TarFlowConfig
from sit.config import PRESETS as SIT_PRESETS
from sit.config import SiTStageConfig
from sit.model import SiTConfig
from tokenizer.config import PRESETS as AE_PRESETS
from tokenizer.config import AEConfig
from tokenizer.prior.train_flowhead import PRESETS as PRIOR_PRESETS
from tokenizer.prior.train_flowhead import FlowPriorConfig
from tokenizer.train_ae import build_objective
from tokenizer.vit import ViTConfig

TINY_VELOCITY = {"width": 16, "depth": 1}
CLASSES = 1000
TINY_MAR = dict(width=32, encoder_depth=1, decoder_depth=1, heads=2, buffer_tokens=4, head_width=16, head_depth=1)
TINY_SIT = dict(width=32, depth=1, heads=2)
TINY_TARFLOW = dict(width=16, depths=(1, 1), heads=2)


@dataclass
class Subject:
    """An objective, the part of it that is handed on, a batch on the CPU, the preset's optimiser, sizes, and what was left out."""

    objective: Objective
    model: nn.Module
    batch: dict[str, Tensor]
    optim: OptimConfig
    size: str
    left_out: str = ""
    size_of_model: str = ""  # of a generator: its part of size


class LatentAlignment(Objective):
    """An alignment loss of latents that are themselves what is trained."""

    def __init__(self, prior: FlowPrior, latents: Tensor, objective: str, online: OnlineFlow | None) -> None:
        super().__init__()
        self.prior, self.kind, self.online = prior, objective, online
        self.latents = nn.Parameter(latents)

    def forward(self, batch: dict[str, Tensor], random: StepRandom) -> StepOutput:
        draw = draw_path_of_step(random, self.latents, pairs=4)
        return StepOutput(self.prior.alignment_loss(self.latents, draw, objective=self.kind, online=self.online))


def randomise(module: nn.Module, std: float = 0.02) -> None:
    """Add noise to every parameter: layers that start at zero would send no gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(std * torch.randn(parameter.shape, generator=generator).to(parameter.device))


def random_prior(channels: int, tiny: bool) -> FlowPrior:
    """Of the paper's size, with random weights."""
    velocity = VelocityMLP(channels, **(TINY_VELOCITY if tiny else {}), generator=torch.Generator().manual_seed(0))
    randomise(velocity)
    return FlowPrior(velocity, TargetMap(torch.zeros(1), torch.ones(()), torch.zeros(1, channels)))


def flow_prior(tiny: bool, device: torch.device, large: bool) -> Subject:
    """Stage 1 at the paper's size, 512 features of four pairs."""
    channels, batch = (2, 8) if tiny else (32, 512)
    velocity = VelocityMLP(channels, **(TINY_VELOCITY if tiny else {}), generator=torch.Generator().manual_seed(0))
    randomise(velocity)
    identity = TargetMap(torch.zeros(channels), torch.ones(()), torch.eye(channels))
    objective = FlowMatchingObjective(velocity, identity, 4)
    preset = build_config(FlowPriorConfig, read_preset(PRIOR_PRESETS / "imagenet_qwen.yaml", PRIOR_PRESETS))
    data = torch.randn(batch, channels, generator=torch.Generator().manual_seed(2))
    size = f"{batch} x 4 pairs, width {velocity.width}, depth {velocity.depth}"
    return Subject(objective, velocity, {"features": data}, preset.optim, size)


def alignment(kind: str, tiny: bool, device: torch.device, large: bool) -> Subject:
    """Latents under a prior of the paper's size: Eq. 5, or the divergence of distributions."""
    images, tokens, channels = (2, 4, 2) if tiny else (8, 64, 32)
    prior = random_prior(channels, tiny).to(device)
    online = None
    if kind != "likelihood":
        config = OnlineFlowConfig(optim=OnlineOptimConfig(ema_decay=0.0))
        online = OnlineFlow(prior, config, world=World(device=device))
        randomise(online.velocity)  # where it equals the prior there is no divergence
    latents = torch.randn(images, tokens, channels, generator=torch.Generator().manual_seed(3))
    objective = LatentAlignment(prior, latents, kind, online)
    size = f"{images * tokens} tokens x 4 pairs, width {prior.velocity.width}, depth {prior.velocity.depth}"
    return Subject(objective, prior.velocity, {}, OptimConfig(lr=1e-2), size)


def autoencoder(tiny: bool, device: torch.device, large: bool) -> Subject:
    """Stage 2 with every loss of the paper's recipe from the first step on; ``large``: ViT-L, else a ViT of width 384 and depth 6."""
    config, left_out = recipe(tiny)
    if not (large or tiny):
        config.model.encoder = config.model.decoder = ViTConfig(width=384, depth=6, heads=6)
    prior = random_prior(config.model.channels, tiny)
    # Two ViT-L are drawn where that is fast; smaller ones where every device has the same draws.
    with torch.device(device if large else "cpu"):
        objective = build_objective(config, None, World(device=device), 1000, prior)
    batch = 2 if tiny else 8 if large else 4
    side = config.data.size
    images = torch.randint(0, 256, (batch, 3, side, side), generator=torch.Generator().manual_seed(4))
    size = f"{batch} images of {side} px, encoder of width {objective.autoencoder.encoder.vit.embed_dim}"
    return Subject(objective, objective.autoencoder, {"image": images.to(torch.uint8)}, config.optim, size, left_out)


def recipe(tiny: bool) -> tuple[AEConfig, str]:
    """The preset imagenet_qwen with its discriminator and LPIPS at full weight from the first step on, and what is left out of it."""
    config = build_config(AEConfig, read_preset(AE_PRESETS / "imagenet_qwen.yaml", AE_PRESETS))
    config.model.encoder.pretrained = config.loss.adversarial.discriminator.dino.pretrained = False
    config.loss.adversarial.start_step = config.loss.perceptual_ramp_steps = 0
    config.train.log_steps = 10**9
    left_out = "pretrained weights"
    if importlib.util.find_spec("lpips") is None:
        config.loss.perceptual_weight = 0.0
        left_out += ", LPIPS (the package lpips is missing)"
    if tiny:
        config.data.size = config.model.image_size = 32
        config.model.tokens, config.model.channels = 4, 8
        config.model.encoder = config.model.decoder = ViTConfig(width=24, depth=1, heads=3)
        dino = config.loss.adversarial.discriminator.dino
        dino.name, dino.size, dino.blocks = "vit_tiny_patch16_224", 32, (2, 4)
    return config, left_out


def mar(tiny: bool, device: torch.device, large: bool) -> Subject:
    """Stage 3: MAR-B on 64 tokens of 32 channels."""
    preset = build_config(MARStageConfig, read_preset(MAR_PRESETS / "imagenet.yaml", MAR_PRESETS))
    config = replace(preset.model.mar, size="", **TINY_MAR) if tiny else preset.model.mar
    if not large:
        config = replace(config, dropout=0.0)  # its draws are the device's own
    size = f"width {config.width}, {config.pairs} pairs"
    return generator_subject(partial(build_mar, config), preset.optim, size, tiny, large)


def sit(tiny: bool, device: torch.device, large: bool) -> Subject:
    """Stage 3 with SiT: the preset's SiT-XL where ``large``, else SiT-B."""
    preset = build_config(SiTStageConfig, read_preset(SIT_PRESETS / "imagenet.yaml", SIT_PRESETS))
    config = preset.model.sit if large else SiTConfig(size="B")
    if tiny:
        config = SiTConfig(**TINY_SIT)
    return generator_subject(partial(build_random, config), preset.optim, f"width {config.width}", tiny, large)


def normalizing_flow(tiny: bool, device: torch.device, large: bool) -> Subject:
    """Stage 3 with the autoregressive flow: the preset's 56 layers where ``large``, else ten of width 384."""
    preset = build_config(SimFlowStageConfig, read_preset(TARFLOW_PRESETS / "imagenet.yaml", TARFLOW_PRESETS))
    config = preset.model.tarflow
    if tiny or not large:
        config = replace(config, **(TINY_TARFLOW if tiny else {"width": 384, "depths": (2, 2, 6), "heads": 6}))
    size = f"width {config.width}, {sum(config.depths)} layers"
    return generator_subject(partial(build_random, config), preset.optim, size, tiny, large)


def generator_subject(
    build: Callable[[int, int], nn.Module], optim: OptimConfig, size: str, tiny: bool, large: bool
) -> Subject:
    """A generator, built for (tokens, channels), and random latents of its shape: 4 of them, or 32 where ``large``."""
    tokens, channels, batch = (8, 2, 4) if tiny else (64, 32, 32 if large else 4)
    objective = GeneratorObjective(build(tokens, channels), LatentNormaliser(channels))
    draws = torch.Generator().manual_seed(5)
    latents = torch.randn(batch, tokens, channels, generator=draws)
    labels = torch.randint(0, CLASSES, (batch,), generator=draws)
    of_model = f"{tokens} tokens, {size}"
    tensors = {"latents": latents, "label": labels}
    return Subject(objective, objective.model, tensors, optim, f"{batch} images of {of_model}", size_of_model=of_model)


def build_mar(config: MARConfig, tokens: int, channels: int) -> nn.Module:
    """MAR whose head's zero layers are random, so that it draws something and every weight has a gradient."""
    torch.manual_seed(0)
    model = config.build(tokens, channels, CLASSES)
    randomise(model.head)
    return model


def build_random(config: SiTConfig | TarFlowConfig, tokens: int, channels: int) -> nn.Module:
    """A generator none of whose layers is zero."""
    torch.manual_seed(0)
    model = config.build(tokens, channels, CLASSES)
    randomise(model)
    return model


SUBJECTS: dict[str, Callable[[bool, torch.device, bool], Subject]] = {
    "flow prior": flow_prior,
    "likelihood alignment": lambda *a: alignment("likelihood", *a),
    "distribution alignment": lambda *a: alignment("distribution", *a),
    "autoencoder": autoencoder,
    "MAR": mar,
    "SiT": sit,
    "normalizing flow": normalizing_flow,
}
