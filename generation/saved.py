"""A trained generator as a folder: ``model.safetensors`` with the weights and the latents' scale, ``config.json`` with the rest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flowprior.data.latent_scale import LatentNormaliser
from flowprior.errors import UserError
from flowprior.run.config import build_config
from flowprior.run.files import (
    build_saved,
    load_weights,
    read_json,
    read_tensors,
    tensors_fingerprint,
    write_json,
    write_tensors,
)
from generation.config import GenerationConfig
from generation.generator import GeneratorObjective, build_generator
from generation.written import check_written
from tokenizer.opening import Tokenizer

FORMAT_VERSION = 1


def save_generator(
    folder: Path, bundle: GeneratorObjective, section: Any, shape: dict[str, int], about: dict[str, Any]
) -> str:
    """Write generator and normaliser; returns the fingerprint of both.

    Args:
        folder: where to.
        bundle: generator and normaliser.
        section: ``model`` of the stage's config.
        shape: ``tokens``, ``channels``, ``num_classes``.
        about: the autoencoder's fingerprint (``autoencoder``) and what else should be remembered.
    """
    fingerprint = tensors_fingerprint(bundle.state_dict())
    write_tensors(folder / "model.safetensors", bundle.state_dict())
    write_json(
        folder / "config.json",
        {
            "format": FORMAT_VERSION,
            "generator": asdict(section),
            "shape": shape,
            "about": about,
            "fingerprint": fingerprint,
        },
    )
    return fingerprint


def load_generator(
    config: GenerationConfig, autoencoder: Tokenizer, device: torch.device, folder: Path | None = None
) -> tuple[GeneratorObjective, dict[str, Any]]:
    """The run's trained generator, or that in ``folder``, with the sampler that ``config`` asks for, and its ``config.json``.

    Raises:
        UserError: there is none, it is damaged, or it was trained on the latents of another autoencoder.
    """
    own, folder = folder is None, folder or config.folder / "generator"
    if not (folder / "config.json").is_file():
        names = [
            str(each.get("name"))
            for each in getattr(autoencoder, "about", {}).get("regularisers", [])
            if isinstance(each, dict)
        ]
        remedy = (
            f"{config.makes_generator(names)} first, with the same PRESET and DATA"
            if own
            else "write start=<folder of one>"
        )
        raise UserError(f"there is no trained generator at {folder}: {remedy}")
    saved = read_json(folder / "config.json", "generator")
    if saved.get("format") != FORMAT_VERSION:
        raise UserError(f"{folder / 'config.json'} is not a generator of format {FORMAT_VERSION}")
    try:
        made_for = saved["about"]["autoencoder"]
        shape = {name: int(saved["shape"][name]) for name in ("tokens", "channels", "num_classes")}
        if min(shape.values()) < 1:
            raise ValueError(f"shape {shape}")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / 'config.json'} is damaged ({error}): {'delete' if own else 'restore'} {folder.parent}"
        ) from error
    if made_for != autoencoder.fingerprint:
        remedy = f"delete {folder.parent}" if own else "write autoencoder=<the one that it was trained on>"
        raise UserError(
            f"the generator in {folder} was trained on the latents of another autoencoder than {config.autoencoder_folder}: {remedy}"
        )
    what = f"the generator in {folder}"
    trained = build_config(type(config.model), config.complete_section(saved.get("generator"), what), str(folder))
    if own:
        check_written(config, trained, what)
    getattr(trained, trained.name).sampler = getattr(config.model, trained.name).sampler

    tensors = read_tensors(folder / "model.safetensors", "generator's weights")
    per_token = "normaliser.scale" in tensors and tensors["normaliser.scale"].dim() == 2
    scale_shape = (shape["tokens"], shape["channels"]) if per_token else (shape["channels"],)

    def make() -> GeneratorObjective:
        return GeneratorObjective(build_generator(trained, **shape), LatentNormaliser(*scale_shape))

    bundle = build_saved(make, [saved["generator"], shape], tensors, what)
    if tensors_fingerprint(bundle.state_dict()) != saved.get("fingerprint"):
        raise UserError(
            f"the weights in {folder / 'model.safetensors'} are not those that its config.json was written with: restore the folder"
        )
    return bundle.eval().requires_grad_(False).to(device), saved


def start_from(objective: GeneratorObjective, start: GeneratorObjective, folder: str) -> None:
    """Give a generator that is to be trained the weights and the scale of ``start``, the trained one in ``folder``.

    Raises:
        UserError: it is of other sizes.
    """
    if objective.normaliser.scale.dim() != start.normaliser.scale.dim():
        per = "token" if start.normaliser.scale.dim() == 2 else "channel"
        raise UserError(
            f"the generator in {folder} has another kind of scale of its latents: write cache.scale_per={per}"
        )
    wanted, there = ({name: value.shape for name, value in of.state_dict().items()} for of in (objective, start))
    if wanted != there:
        raise UserError(
            f"the generator in {folder} has other sizes than this one: write those in the 'generator' of its config.json behind model."
        )
    load_weights(objective, start.state_dict(), f"the generator in {folder}")
