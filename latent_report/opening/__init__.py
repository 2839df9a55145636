"""From what a person names to latents: our autoencoders, diffusers' ones, custom ones in a Python file, latents in a file, our cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flowprior.errors import UserError
from flowprior.pretrained.hub_file import NoSuchFile, hub_file
from flowprior.run.files import file_sha256, read_json
from flowprior.run.hub import saved_folder
from latent_report.opening.bare import SUFFIXES, read_cache, read_file, read_labels
from latent_report.opening.base import ImageOptions, Latents, encode_images
from tokenizer.autoencoder import Autoencoder
from tokenizer.diffusers_kl import DiffusersAutoencoder, is_diffusers
from tokenizer.python_file import PythonAutoencoder, is_python_file

__all__ = ["ImageOptions", "Latents", "made_of", "open_tokenizer", "read_labels"]

# Where an autoencoder lies within what a person names: itself, a run, its stage 2, a diffusion pipeline.
WITHIN = ("", "ae/autoencoder", "autoencoder", "vae")
CACHE = "manifest.json"  # of this project's latent caches
REMEDY = "name a folder of a tokenizer, a Python file with one, or a file of latents"


def open_tokenizer(named: str, options: ImageOptions) -> Latents:
    """The latents of what ``named`` is: a file of latents, a latent cache, a folder with an autoencoder, or ``user/name`` on the hub.

    Raises:
        UserError: it is none of these, it is damaged, or its latents are too few, not finite or of no known shape.
    """
    path = Path(named)
    if is_python_file(path):
        return encode_images(
            PythonAutoencoder.load(path).at(options.data.size), "autoencoder in a Python file", options
        )
    if _is_file_of_latents(path):
        return read_file(path, options)
    if (path / CACHE).is_file():
        return read_cache(path, options)
    place = _place(named)
    load, kind = _loader(place)
    return encode_images(load(place.where, place.within), kind, options)


def made_of(named: str) -> tuple[dict[str, str], int | None]:
    """What tells whether ``named`` is what it was: fingerprints of its files by their names, or the commit of a repository on the hub; and the
    side of the images that it takes, 0 for any, None where it takes none.

    Nothing but a Python file is loaded. Of a cache the manifest counts, which has its shards' checksums.

    Raises:
        UserError: it is no tokenizer.
    """
    path = Path(named)
    if is_python_file(path):
        return {path.name: PythonAutoencoder.load(path).fingerprint}, 0
    if _is_file_of_latents(path):
        if not path.is_file():
            raise UserError(f"there is no file of latents at {path}")
        return {path.name: file_sha256(path)[:16]}, None
    if (path / CACHE).is_file():
        return {CACHE: file_sha256(path / CACHE)[:16]}, None
    place = _place(named)
    sizes = place.config.get("sizes")
    side = sizes.get("image_size") if isinstance(sizes, dict) else 0
    if not path.is_dir():
        return {"commit": str(place.folder)}, side if isinstance(side, int) else 0
    files = [file for file in sorted(place.folder.iterdir()) if file.suffix in (".json", ".safetensors")]
    return {file.name: file_sha256(file)[:16] for file in files}, side if isinstance(side, int) else 0


def _is_file_of_latents(path: Path) -> bool:
    return path.suffix in SUFFIXES and (path.is_file() or not path.is_dir())


class _Place(NamedTuple):
    where: str  # a folder, or a repository of the hub
    within: str  # sub-folder
    config: dict[str, Any]
    folder: Path  # that the config lies in


def _place(named: str) -> _Place:
    """The first place in :data:`WITHIN` with the config of a tokenizer, or else of something else, which is then refused by its name."""
    path = Path(named)
    if not path.is_dir() and (path.exists() or named.count("/") != 1 or named.startswith((".", "/"))):
        raise UserError(f"there is no tokenizer at {named}: {REMEDY} ({', '.join(SUFFIXES)}), or user/name of the hub")
    other = None
    for place in _folders(named) if path.is_dir() else _hub_folders(named):
        if _is_tokenizer(place.config):
            return place
        other = other or place
    if other is not None:
        return other
    here = ", and no latent cache's manifest.json" if path.is_dir() else ""
    raise UserError(
        f"{named}{'' if path.is_dir() else ' on the hub'} is no tokenizer: it has no config.json, neither itself nor in "
        f"{', '.join(WITHIN[1:])}{here}"
    )


def _folders(named: str) -> Iterator[_Place]:
    for within in WITHIN:
        if (file := Path(named) / within / "config.json").is_file():
            yield _Place(named, within, read_json(file, "tokenizer's config"), file.parent)


def _hub_folders(named: str) -> Iterator[_Place]:
    """Those in the hub's cache come first: without a network nobody can ask which others the repository has."""
    for cached_only, within in itertools.product((True, False), WITHIN):
        try:
            file = hub_file(named, f"{within}/config.json".lstrip("/"), REMEDY, cached_only=cached_only)
        except NoSuchFile:
            continue
        except UserError:
            if cached_only:
                continue
            raise
        yield _Place(named, within, read_json(file, "tokenizer's config"), file.parent)


def _is_tokenizer(config: dict[str, Any]) -> bool:
    return is_diffusers(config) or "sizes" in config


def _loader(place: _Place) -> tuple[Callable[[str, str], Any], str]:
    if is_diffusers(place.config):
        return DiffusersAutoencoder.load, f"diffusers {place.config['_class_name']}"
    if _is_tokenizer(place.config):
        return lambda where, within: Autoencoder.load(saved_folder(where, "autoencoder", within)), "autoencoder"
    other = place.config.get("_class_name") or place.config.get("model_type") or "no kind that is known here"
    raise UserError(
        f"{place.where} is {other}: a tokenizer is an autoencoder of this project, or diffusers' AutoencoderKL"
    )
