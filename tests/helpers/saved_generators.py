"""A small MAR saved as stage 3 saves it, for tests of saved generators."""

import json
from pathlib import Path
from typing import Any

import torch

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.run.config import build_config
from generation.generator import GeneratorObjective, build_generator
from generation.saved import load_generator, save_generator
from mar.config import MARStageConfig
from tokenizer.autoencoder import Autoencoder, AutoencoderConfig, ViTConfig

SHAPE = {"tokens": 4, "channels": 3, "num_classes": 5}
SIZES = {
    "width": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "heads": 2,
    "buffer_tokens": 2,
    "head_width": 12,
    "head_depth": 1,
}


def autoencoder(seed: int) -> Autoencoder:
    torch.manual_seed(seed)
    vit = ViTConfig(width=12, depth=1, heads=3)
    return Autoencoder(AutoencoderConfig(16, 8, 4, 3, False, vit, vit))


def stage(run_dir: Path, **sampler) -> MARStageConfig:
    sampler = {"ar_steps": 2, "head_steps": 3} | sampler
    return build_config(MARStageConfig, {"run_dir": str(run_dir), "model": {"mar": {**SIZES, "sampler": sampler}}})


def save(run_dir: Path, scale_shape: tuple[int, ...] = (3,)) -> tuple[GeneratorObjective, str]:
    """A generator of random weights, saved as the run's, and its fingerprint."""
    config = stage(run_dir)
    torch.manual_seed(0)
    bundle = GeneratorObjective(build_generator(config.model, **SHAPE), LatentNormaliser(*scale_shape)).eval()
    with torch.no_grad():
        for tensor in bundle.state_dict().values():
            tensor.add_(torch.rand(tensor.shape))
    about = {"autoencoder": autoencoder(0).fingerprint}
    return bundle, save_generator(config.folder / "generator", bundle, config.model, SHAPE, about)


def load(run_dir: Path, seed: int = 0, **sampler) -> tuple[GeneratorObjective, dict[str, Any]]:
    return load_generator(stage(run_dir, **sampler), autoencoder(seed), torch.device("cpu"))


def rewrite(folder: Path, change) -> None:
    """Change what the ``config.json`` of a saved generator holds."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
