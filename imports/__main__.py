"""Weights that were trained with published code, as a folder of this project.

    bash scripts/import_weights.sh SOURCE --out FOLDER [option=value ...]

SOURCE is a checkpoint (.pt, .pth, .bin, .safetensors), a folder that holds model.safetensors, or user/name or user/name/file on the hub. What it
holds is told by its names: an autoencoder of SoftVQ-VAE's or the paper's code, the paper's flow prior, or the paper's MAR. Nothing is dropped
without a word, and what does not fit is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flowprior.errors import UserError, entry_point
from flowprior.run.config import apply_overrides, build_config
from flowprior.run.presets import Parser
from imports.autoencoder import import_autoencoder, is_autoencoder
from imports.checkpoint import Checkpoint, read_checkpoint
from imports.config import ImportConfig
from imports.flow_prior import import_flow_prior, is_flow_prior
from imports.mar import import_mar, is_mar

KINDS = {
    "autoencoder": (is_autoencoder, import_autoencoder),
    "flow prior": (is_flow_prior, import_flow_prior),
    "MAR": (is_mar, import_mar),
}


@entry_point
def main() -> None:
    source, out, config = parse(sys.argv[1:])
    check_out(out)
    import_weights(read_checkpoint(source, config.set), config, out)


def parse(argv: Sequence[str]) -> tuple[str, Path, ImportConfig]:
    """Source, folder and options of a command line."""
    parser = Parser(prog="imports", description=__doc__, options_of=ImportConfig)
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, required=True, help="to be written; it must not be there yet"
    )
    parser.add_argument("options", nargs="*", metavar="option=value")
    words = parser.parse_intermixed_args(argv)
    return words.source, words.out, build_config(ImportConfig, apply_overrides({}, words.options))


def check_out(out: Path) -> None:
    """A :class:`UserError` where the folder holds something."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is there already: name another folder with --out, or delete it")


def import_weights(checkpoint: Checkpoint, config: ImportConfig, out: Path) -> None:
    """Write what the checkpoint holds into ``out``; a :class:`UserError` where it is none of :data:`KINDS`."""
    for kind, (fits, take) in KINDS.items():
        if fits(checkpoint):
            made = take(checkpoint, config, out)
            numbers = sum(parameter.numel() for parameter in made.parameters())
            print(f"{kind}: {out}  ({numbers / 1e6:.1f} million numbers of {checkpoint.file})")
            return
    names = sorted(checkpoint.tensors)
    raise UserError(
        f"the checkpoint {checkpoint.file} is none of {', '.join(KINDS)}: its names are {', '.join(names[:3])} and {max(0, len(names) - 3)} more"
    )


if __name__ == "__main__":
    main()
