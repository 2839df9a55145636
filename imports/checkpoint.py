"""Published checkpoints: which set of tensors is taken, what wrappers have put into their names, and the numbers beside them."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.pretrained.hub_file import NoSuchFile, hub_file
from flowprior.run.archives import is_archive, load_pt
from flowprior.run.files import file_sha256, read_tensors
from imports.file_kind import diffusers_class, other_kind

SETS = ("model_ema", "ema", "model", "state_dict")  # the averaged weights come first
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
SCALE = "vae_scaling_factor"
WHAT = "checkpoint"
REMEDY = "name a file that is here"
NEEDS_NONE = "an AutoencoderKL of diffusers needs no import, name its folder wherever an autoencoder is asked for"


class Checkpoint(NamedTuple):
    """One set of tensors.

    Attributes:
        file: it was read from.
        tensors: floating-point ones in float32, by their names without what DDP and ``torch.compile`` add.
        taken: name of the set; empty where the file holds one only.
        numbers: that stand beside the sets, or in the arguments of the run, by name; tensors of one element among them.
    """

    file: Path
    tensors: dict[str, Tensor]
    taken: str
    numbers: dict[str, float]

    def origin(self) -> dict[str, str]:
        """Where the weights come from, for the folder that is made of them."""
        return {"file": self.file.name, "sha256": file_sha256(self.file)} | ({"set": self.taken} if self.taken else {})


def read_checkpoint(source: str, wanted: str = "") -> Checkpoint:
    """The averaged weights in a checkpoint, or the set called ``wanted``. No code is run.

    Args:
        source: a ``.safetensors`` file, what ``torch.save`` wrote, a folder with :data:`HUB_FILES`, or ``user/name`` or ``user/name/file`` of
            the hub.
        wanted: key of a dictionary of tensors; empty: the first of :data:`SETS` that is there.

    Raises:
        UserError: there is no such file or set, it is no checkpoint or a damaged one, holds objects, or has one name twice without its prefix.
    """
    file = find_file(source)
    if kind := other_kind(file):
        raise UserError(
            f"{file} is no checkpoint but {kind}" if kind != "empty" else f"{file} is empty: fetch it again"
        )
    if file.suffix == ".safetensors":
        if wanted:
            raise UserError(f"{file} holds one set of tensors without a name: leave out set={wanted}")
        content: Any = read_tensors(file, WHAT)
    else:
        with torch.serialization.safe_globals([argparse.Namespace]):  # a run's arguments, which are plain values
            content = load_pt(file, WHAT, map_location="cpu", **({"mmap": True} if is_archive(file) else {}))
    if not isinstance(content, dict):
        raise UserError(f"the checkpoint {file} must hold a dictionary of tensors, not a {type(content).__name__}")
    sets = {name: value for name, value in content.items() if isinstance(value, dict) and _tensors(value)}
    taken = wanted or next((name for name in SETS if name in sets), "")
    if taken and taken not in sets:
        raise UserError(
            f"the checkpoint {file} has no set '{taken}' of tensors: it has {', '.join(map(str, sets)) or 'none'}"
        )
    if not taken and sets:
        raise UserError(
            f"the checkpoint {file} has sets of tensors by other names: write set=<one of {', '.join(map(str, sets))}>"
        )
    tensors = _tensors(sets[taken] if taken else content)
    if not tensors:
        raise UserError(f"the checkpoint {file} holds no tensors")
    if len(sets) > 1:
        note(f"of {file}, '{taken}' is taken, not {', '.join(str(name) for name in sets if name != taken)}")
    return Checkpoint(file, _plain_names(tensors, file), taken, dict(_numbers(content)))


def scale_of(checkpoint: Checkpoint, stated: float) -> float | None:
    """What features or latents were multiplied by in training: ``stated`` by a person, or 0 for the checkpoint's; None where it has none.

    Raises:
        UserError: it is not a finite number above 0.
    """
    scale = stated or checkpoint.numbers.get(SCALE)
    if scale is not None and not 0 < scale < math.inf:
        whose = "scale=" if stated else f"the {SCALE} in {checkpoint.file}"
        raise UserError(f"{whose} is a finite number above 0, not {scale:g}: write scale=<1 / std>")
    return scale


def find_file(source: str) -> Path:
    """The file that ``source`` names, here or on the hub; a :class:`UserError` where there is none."""
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        for name in HUB_FILES:
            if (path / name).is_file():
                return path / name
        if kind := diffusers_class(path):
            raise UserError(f"{source} is diffusers' {kind}: {NEEDS_NONE}")
        raise UserError(f"{source} holds neither {' nor '.join(HUB_FILES)}: name the file itself")
    user, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    if path.is_absolute() or source.startswith(".") or not (user and name):
        raise UserError(f"there is no checkpoint at {source}: {REMEDY}, or user/name of the hub")
    for candidate in (file,) if file else HUB_FILES:
        try:
            return hub_file(f"{user}/{name}", candidate, REMEDY)
        except NoSuchFile:
            continue
    raise UserError(
        f"{user}/{name} on the hub has no file {file or ' or '.join(HUB_FILES)}: name another, user/name/<file> ({NEEDS_NONE})"
    )


def _tensors(values: dict[Any, Any]) -> dict[str, Tensor]:
    return {str(name): value for name, value in values.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _plain_names(tensors: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Without DDP's ``module.`` in front and ``torch.compile``'s ``_orig_mod.`` anywhere."""
    plain: dict[str, Tensor] = {}
    for name, value in tensors.items():
        short = re.sub(r"^(module\.)+", "", name.replace("_orig_mod.", ""))
        if short in plain:
            raise UserError(f"the checkpoint {file} has {short} with and without a wrapper's prefix: keep one of each")
        plain[short] = value.float() if value.is_floating_point() else value
    return plain


def _numbers(content: dict[Any, Any]) -> Iterator[tuple[str, float]]:
    arguments = [vars(part) if isinstance(part, argparse.Namespace) else part for part in content.values()]
    for values in (content, *(part for part in arguments if isinstance(part, dict))):
        for name, value in values.items():
            if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
                value = value.item()
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield str(name), float(value)
