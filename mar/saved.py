"""A trained generator as a folder: ``model.safetensors`` with the weights and the latents' scale, ``config.json`` with the rest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.config import build_config
from flowprior.run.files import (
    build_saved,
    read_json,
    read_tensors,
    tensors_fingerprint,
    write_json,
    write_tensors,
)
from mar.config import GeneratorConfig, MARStageConfig, build_generator
from mar.generator import GeneratorObjective
from mar.model import NORMS_BEFORE
from tokenizer.autoencoder import Autoencoder

FORMAT_VERSION = 1


def save_generator(
    folder: Path, bundle: GeneratorObjective, config: GeneratorConfig, shape: dict[str, int], about: dict[str, Any]
) -> str:
    """Write generator and normaliser; returns the fingerprint of both.

    Args:
        folder: where to.
        bundle: generator and normaliser.
        config: the generator's.
        shape: ``tokens``, ``channels``, ``num_classes``.
        about: the autoencoder's fingerprint (``autoencoder``) and what else should be remembered.
    """
    fingerprint = tensors_fingerprint(bundle.state_dict())
    write_tensors(folder / "model.safetensors", bundle.state_dict())
    write_json(
        folder / "config.json",
        {
            "format": FORMAT_VERSION,
            "generator": asdict(config),
            "shape": shape,
            "about": about,
            "fingerprint": fingerprint,
        },
    )
    return fingerprint


def load_generator(
    config: MARStageConfig, autoencoder: Autoencoder, device: torch.device
) -> tuple[GeneratorObjective, dict[str, Any]]:
    """The run's trained generator with the sampler that ``config`` asks for, and its ``config.json``.

    Raises:
        UserError: there is none, it is damaged, or it was trained on the latents of another autoencoder.
    """
    folder = Path(config.run_dir) / "mar" / "generator"
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no trained generator at {folder}: run `bash scripts/train_mar.sh` first")
    saved = read_json(folder / "config.json", "generator")
    if saved.get("format") != FORMAT_VERSION:
        raise UserError(f"{folder / 'config.json'} is not a generator of format {FORMAT_VERSION}")
    try:
        made_for = saved["about"]["autoencoder"]
        shape = {name: int(saved["shape"][name]) for name in ("tokens", "channels", "num_classes")}
        if min(shape.values()) < 1:
            raise ValueError(f"shape {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is damaged ({error}): delete {folder.parent}") from error
    if made_for != autoencoder.fingerprint:
        raise UserError(
            f"the generator in {folder} was trained on the latents of another autoencoder than {config.autoencoder_folder}: delete {folder.parent}"
        )
    trained = build_config(
        GeneratorConfig, with_norms(saved.get("generator"), f"the generator in {folder}"), str(folder)
    )
    section = getattr(trained, trained.name)
    section.sampler = getattr(config.model, trained.name).sampler

    def make() -> GeneratorObjective:
        return GeneratorObjective(build_generator(trained, **shape), LatentNormaliser(shape["channels"]))

    tensors = read_tensors(folder / "model.safetensors", "generator's weights")
    bundle = build_saved(make, [saved["generator"], shape], tensors, f"the generator in {folder}")
    if tensors_fingerprint(bundle.state_dict()) != saved.get("fingerprint"):
        raise UserError(
            f"the weights in {folder / 'model.safetensors'} are not those that its config.json was written with: restore the folder"
        )
    return bundle.eval().requires_grad_(False).to(device), saved


def with_norms(generator: Any, what: str) -> Any:
    """A generator's config as plain values, with the eps of the norms that it was trained with where it is from before they stood in it."""
    if (
        not isinstance(generator, dict)
        or not isinstance(section := generator.get("mar"), dict)
        or "qk_norm_eps" in section
    ):
        return generator
    if generator.get("name", "mar") == "mar":
        note(
            f"{what} states no eps of its norms: {NORMS_BEFORE['qk_norm_eps']:g} is taken, as timm's blocks have had it since 1.0.19"
        )
    return generator | {"mar": section | NORMS_BEFORE}
