"""Weights that were trained with published code, as a folder of this project.

    bash scripts/import_weights.sh SOURCE --out FOLDER [option=value ...]

SOURCE is a checkpoint (.pt, .pth, .bin, .safetensors), a folder that holds model.safetensors, or user/name or user/name/file on the hub. What it
holds is told by its names: an autoencoder of SoftVQ-VAE's or the paper's code, the paper's flow prior, or the paper's MAR. Nothing is dropped
without a word, and what does not fit is refused.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from flowprior.errors import UserError, entry_point
from flowprior.run.config import apply_overrides, build_config
from flowprior.run.presets import Parser
from imports.autoencoder import NAMES as AUTOENCODER
from imports.autoencoder import import_autoencoder
from imports.checkpoint import NEEDS_NONE, Checkpoint, read_checkpoint
from imports.config import ImportConfig
from imports.flow_prior import NAMES as FLOW_PRIOR
from imports.flow_prior import import_flow_prior
from imports.mar import NAMES as MAR
from imports.mar import import_mar
from imports.names import few, has_names, refuse_adapters


class Kind(NamedTuple):
    """What a checkpoint may hold.

    Attributes:
        names: beginnings of names that it is known by.
        take: writes it as a folder of this project.
        options: of :class:`~imports.config.ImportConfig`, that it is made by.
    """

    names: tuple[str, ...]
    take: Callable[[Checkpoint, ImportConfig, Path], nn.Module]
    options: tuple[str, ...]


KINDS = {
    "autoencoder": Kind(AUTOENCODER, import_autoencoder, ("encoder", "decoder", "temperature")),
    "flow prior": Kind(FLOW_PRIOR, import_flow_prior, ("scale", "features", "projection_seed")),
    "MAR": Kind(MAR, import_mar, ("autoencoder", "scale")),
}
DIFFUSERS = ("encoder.down_blocks.", "decoder.up_blocks.")
USAGE = "bash scripts/import_weights.sh SOURCE --out FOLDER"


@entry_point
def main() -> None:
    source, out, config = parse(sys.argv[1:])
    check_out(out)
    import_weights(read_checkpoint(source, config.set), config, out)


def parse(argv: Sequence[str]) -> tuple[str, Path, ImportConfig]:
    """Source, folder and options of a command line."""
    parser = Parser(prog="imports", description=__doc__, options_of=ImportConfig)
    parser.add_argument("source", nargs="?", metavar="SOURCE")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="to be written; it must not be there yet")
    parser.add_argument("options", nargs="*", metavar="option=value")
    words = parser.parse_intermixed_args(argv)
    if words.source is None:
        raise UserError(f"name a checkpoint: {USAGE}")
    if words.out is None:
        raise UserError(f"name a folder to write with --out: {USAGE}")
    options = [field.name for field in dataclasses.fields(ImportConfig)]
    for word in words.options:
        if word.partition("=")[0] not in options:
            raise UserError(f"'{word}' is no option: these are {', '.join(f'{name}=' for name in options)}")
    return words.source, words.out, build_config(ImportConfig, apply_overrides({}, words.options))


def check_out(out: Path) -> None:
    """A :class:`UserError` where the folder holds something."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there already: name another folder with --out, or delete it")


def import_weights(checkpoint: Checkpoint, config: ImportConfig, out: Path) -> None:
    """Write what the checkpoint holds into ``out``; a :class:`UserError` where it is none of :data:`KINDS`."""
    refuse_adapters(checkpoint)
    if any(name.startswith(DIFFUSERS) for name in checkpoint.tensors):
        raise UserError(f"{checkpoint.file} has the names of an autoencoder of diffusers: {NEEDS_NONE}")
    for name, kind in KINDS.items():
        if has_names(checkpoint, kind.names):
            check_options(config, name, checkpoint)
            made = kind.take(checkpoint, config, out)
            numbers = in_words(sum(parameter.numel() for parameter in made.parameters()))
            print(f"{name}: {out}  ({numbers} numbers of {checkpoint.file})")
            return
    known = ", ".join(f"{name} (names begin with {' or '.join(kind.names)})" for name, kind in KINDS.items())
    raise UserError(
        f"the checkpoint {checkpoint.file} holds none of these: {known}; its names are {few(sorted(checkpoint.tensors))}"
    )


def check_options(config: ImportConfig, name: str, checkpoint: Checkpoint) -> None:
    """A :class:`UserError` for options that change nothing in this one of :data:`KINDS`."""
    used = ("set", *KINDS[name].options)
    fields = dataclasses.fields(ImportConfig)
    idle = [f"{f.name}=" for f in fields if f.name not in used and getattr(config, f.name) != f.default]
    if idle:
        takes = ", ".join(f"{option}=" for option in used)
        raise UserError(f"leave out {' and '.join(idle)}: the {name} in {checkpoint.file} takes {takes} alone")


def in_words(count: int) -> str:
    """``count``, in millions where there are as many."""
    return f"{count:,}" if count < 1_000_000 else f"{count / 1e6:.1f} million"


if __name__ == "__main__":
    main()
