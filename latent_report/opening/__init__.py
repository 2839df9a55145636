"""From what a person names to latents: our autoencoders, diffusers' ones, latents in a file, our cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.errors import UserError
from flowprior.pretrained.hub_file import NoSuchFile, hub_file
from flowprior.run.files import read_json
from latent_report.opening.bare import SUFFIXES, read_cache, read_file, read_labels
from latent_report.opening.base import ImageOptions, Latents, encode_images
from tokenizer.autoencoder import Autoencoder
from tokenizer.diffusers_kl import DiffusersAutoencoder, is_diffusers

__all__ = ["ImageOptions", "Latents", "open_tokenizer", "read_labels"]

# Where an autoencoder lies within what a person names: itself, a run, its stage 2, a diffusion pipeline.
WITHIN = ("", "ae/autoencoder", "autoencoder", "vae")
REMEDY = "name a folder of a tokenizer, or a file of latents"


def open_tokenizer(named: str, options: ImageOptions) -> Latents:
    """The latents of what ``named`` is: a file of latents, a latent cache, a folder with an autoencoder, or ``user/name`` on the hub.

    Raises:
        UserError: it is none of these, it is damaged, or its latents are too few, not finite or of no known shape.
    """
    path = Path(named)
    if path.suffix in SUFFIXES and (path.is_file() or not path.is_dir()):
        return read_file(path, options)
    if (path / "manifest.json").is_file():
        return read_cache(path, options)
    place = _place(named)
    load, kind = _loader(place)
    return encode_images(load(place.where, place.within), kind, options)


class _Place(NamedTuple):
    where: str  # a folder, or a repository of the hub
    within: str  # sub-folder
    config: dict[str, Any]


def _place(named: str) -> _Place:
    path = Path(named)
    if path.is_dir():
        for within in WITHIN:
            if (path / within / "config.json").is_file():
                config = read_json(path / within / "config.json", "tokenizer's config")
                return _Place(named, within, config)
        raise UserError(
            f"{named} is no tokenizer: it has no config.json, neither itself nor in {', '.join(WITHIN[1:])}, and no latent cache's manifest.json"
        )
    if path.exists() or named.count("/") != 1 or named.startswith((".", "/")):
        raise UserError(f"there is no tokenizer at {named}: {REMEDY} ({', '.join(SUFFIXES)}), or user/name of the hub")
    for within in WITHIN:
        try:
            file = hub_file(named, f"{within}/config.json".lstrip("/"), REMEDY)
        except NoSuchFile:
            continue
        return _Place(named, within, read_json(file, "tokenizer's config"))
    raise UserError(f"{named} on the hub is no tokenizer: it has no config.json, neither itself nor in vae")


def _loader(place: _Place) -> tuple[Callable[[str, str], Any], str]:
    if is_diffusers(place.config):
        return DiffusersAutoencoder.load, f"diffusers {place.config['_class_name']}"
    if "sizes" in place.config:
        return lambda where, within: Autoencoder.from_pretrained(
            Path(where) / within if Path(where).is_dir() else where
        ), "autoencoder"
    other = place.config.get("_class_name") or place.config.get("model_type") or "no kind that is known here"
    raise UserError(
        f"{place.where} is {other}: a tokenizer is an autoencoder of this project, or diffusers' AutoencoderKL"
    )
