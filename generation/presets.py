"""Presets of stage 3, which is the same for every autoencoder of a family: ``imagenet_qwen``, say, reads the preset ``imagenet``."""

from __future__ import annotations

import difflib
from pathlib import Path

from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.presets import find_preset
from tokenizer.config import PRESETS as AUTOENCODERS

NEAR = 0.9  # of difflib's likeness: a letter or two
JOINT = "joint_configs"  # presets of autoencoders that are trained with a generator lie in a folder of this name in its room


def find_family(name: str, folder: Path) -> Path:
    """The preset of the room whose presets lie in ``folder``: that called ``name``, or else, where there is no ``a_b.yaml``, ``a.yaml``.

    The name is then that of an autoencoder, and a note says what is read. Where it is a preset of other rooms, and of no autoencoder, it
    asks for those generators' options, which the family's preset does not have.

    Raises:
        UserError: there is neither, or the name is a preset of other rooms alone, or of nothing and much like one of the room's.
    """
    stem = name
    while not _has(folder, stem) and "_" in stem:
        stem = stem.rsplit("_", 1)[0]
    if stem == name or not _has(folder, stem) or Path(name).suffix in (".yaml", ".yml"):
        return find_preset(name, folder)
    room, others = folder.parent.name, rooms_with(name, folder)
    if others and not is_of_autoencoder(name, folder):
        raise UserError(
            f"the preset '{name}' is of {' and '.join(others)}, with options that {room} does not have: choose '{stem}', or another of "
            f"{room}/{folder.name}"
        )
    near = difflib.get_close_matches(name, [file.stem for file in folder.glob("*.yaml")], n=1, cutoff=NEAR)
    if near and near != [stem] and not is_of_autoencoder(name, folder):
        raise UserError(
            f"there is no preset '{name}', of {room} or of an autoencoder: choose '{near[0]}', or '{stem}' for an autoencoder of your own"
        )
    note(f"{room} has no preset '{name}' and reads '{stem}', the same for every autoencoder of that family")
    return folder / f"{stem}.yaml"


def rooms_with(name: str, folder: Path) -> list[str]:
    """Other generators' rooms beside that of ``folder`` with a preset ``name``."""
    folders = sorted(folder.parent.parent.glob(f"*/{folder.name}"))
    return [f.parent.name for f in folders if f != folder and (f.parent / "__main__.py").is_file() and _has(f, name)]


def is_of_autoencoder(name: str, folder: Path) -> bool:
    """Whether stage 2 has a preset ``name``, alone or in a room beside that of ``folder``."""
    folders = [AUTOENCODERS, *folder.parent.parent.glob(f"*/{JOINT}")]
    return any(_has(each, name) for each in folders)


def _has(folder: Path, name: str) -> bool:
    return (folder / f"{name}.yaml").is_file()
