"""Feature tables (N, d) in files: ``.npy``, ``.safetensors`` and ``.pt`` are memory-mapped, ``.npz`` is read."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from flowprior.data.order import SampleKey
from flowprior.errors import UserError
from flowprior.run.archives import archive_members, check_expansion, load_pt, map_array, read_arrays
from flowprior.run.files import damage


def read_features(path: str | Path, key: str = "", key_option: str = "target.file.key") -> Tensor:
    """A table of features, float ``(N, d)``: the rows of what :func:`read_array` reads."""
    table = read_array(path, key, key_option)
    return table.reshape(-1, table.shape[-1])


def read_array(path: str | Path, key: str = "", key_option: str = "target.file.key") -> Tensor:
    """Features as they lie in a file, float ``(N, d)`` or ``(images, tokens, d)``.

    Args:
        path: ``.npy``, ``.npz``, ``.pt``/``.pth`` (a tensor, or a dictionary of tensors), or ``.safetensors``.
        key: which array, where the file holds several; in dictionaries within dictionaries, the names joined by dots.
        key_option: what a person sets the key with, for messages.

    Raises:
        UserError: the file is not there, not one of these, damaged, or holds no such array; the array has another number of
            dimensions, of which nobody knows where the channels are, or no numbers, or is sparse.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no feature file at '{path}'")
    try:
        if path.suffix == ".npy":
            table: Tensor | dict[str, Tensor] = _tensor(map_array(path, "feature file"))
        elif path.suffix == ".npz":
            check_expansion(path, "feature file")
            chosen = _choose(path, [name.removesuffix(".npy") for name in archive_members(path)], key, key_option)
            table = _tensor(read_arrays(path, "feature file", (chosen,))[chosen])
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:  # memory-mapped, and no other tensor is touched
                table = tensors.get_tensor(_choose(path, list(tensors.keys()), key, key_option))
        elif path.suffix in (".pt", ".pth"):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*sparse.*")  # it is refused below, in one line
                table = load_pt(path, "feature file", map_location="cpu", mmap=True)
        else:
            raise UserError(f"features are read from .npy, .npz, .pt or .safetensors, not from '{path.name}'")
    except UserError:
        raise
    except Exception as error:  # of a damaged file: the parsers raise a dozen kinds, down to tokenize.TokenError
        raise UserError(f"the feature file {path} cannot be read ({damage(path, error)})") from error
    if key and isinstance(table, Tensor) and path.suffix in (".npy", ".pt", ".pth"):
        raise UserError(f"{path} holds one array without a name, and so none called '{key}': leave the key out")
    if isinstance(table, dict):
        table = _tensors_within(table)
        table = table[_choose(path, list(table), key, key_option)]
    if isinstance(table, Tensor):
        _check_dense(path, table)
    if not isinstance(table, Tensor) or table.dim() < 2 or not table.numel() or not table.is_floating_point():
        raise UserError(f"{path} must hold a floating-point array of shape (N, d), with numbers in it")
    if table.dim() > 3:
        raise UserError(
            f"the array in {path} has shape {tuple(table.shape)}, and channels may be its second dimension or its last: "
            "save it as (images, tokens, channels)"
        )
    return table.detach()


def _check_dense(path: Path, table: Tensor) -> None:
    """A :class:`UserError` for a tensor that is no plain array of values, with what makes one of it."""
    remedies = {
        "meta": (table.is_meta, "it has no values; save it from the device that has them"),
        "nested": (table.is_nested, "concatenate its parts, torch.cat(table.unbind()), and save that"),
        "sparse": (table.layout != torch.strided, "save table.to_dense() in its place"),
    }
    for kind, (found, remedy) in remedies.items():
        if found:
            raise UserError(f"{path} holds a {kind} tensor, and a dense one of shape (N, d) is wanted: {remedy}")


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind != "f":
        raise ValueError(f"an array of {array.dtype}, where floating-point numbers are wanted")
    with warnings.catch_warnings():
        # Mapped writable, a table larger than the memory would be refused; nobody writes into features.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def _tensors_within(values: dict, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a dictionary, those of dictionaries inside it under dotted names."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, dict):
            found |= _tensors_within(value, f"{prefix}{name}.")
    return found


def _choose(path: Path, names: list[str], key: str, key_option: str) -> str:
    if key in names:
        return key
    if not key and len(names) == 1:
        return names[0]
    wanted = f"has no array '{key}'" if key else "holds several arrays" if names else "holds no arrays"
    near = names if len(names) <= 8 else difflib.get_close_matches(key, names, n=8, cutoff=0.0)
    raise UserError(
        f"{path} {wanted}" + (f": choose one of {', '.join(near)} as the key ({key_option}=)" if near else "")
    )


class FeatureRows:
    """A feature table as a keyed data set; ``batch`` returns ``features`` float32 (B, d).

    Args:
        features: ``(N, d)``.
        rows: those of it that belong to the data set, int64; all without it.
    """

    def __init__(self, features: Tensor, rows: Tensor | None = None) -> None:
        self.features, self.rows = features, rows

    def __len__(self) -> int:
        return len(self.features if self.rows is None else self.rows)

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        index = torch.tensor([key.index for key in keys])
        return {"features": self.features[index if self.rows is None else self.rows[index]].float()}
