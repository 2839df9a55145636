"""Feature tables (N, d) in files: ``.npy`` and ``.safetensors`` are memory-mapped, ``.npz`` and ``.pt`` are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowprior.data.order import SampleKey
from flowprior.errors import UserError
from flowprior.training.files import read_tensors


def read_features(path: str | Path, key: str = "") -> Tensor:
    """A table of features, float ``(N, d)``; leading dimensions of a larger array are flattened.

    Args:
        path: ``.npy``, ``.npz``, ``.pt``/``.pth`` (a tensor, or a dictionary of tensors), or ``.safetensors``.
        key: which array, where the file holds several.

    Raises:
        UserError: the file is not there, not one of these, damaged, or holds no such array.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no feature file at '{path}'")
    try:
        if path.suffix == ".npy":
            table: Tensor | dict[str, Tensor] = _tensor(np.load(path, mmap_mode="c", allow_pickle=False))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                chosen = _choose(path, list(arrays.keys()), key)
                table = _tensor(arrays[chosen])
        elif path.suffix == ".safetensors":
            table = read_tensors(path, "feature file")
        elif path.suffix in (".pt", ".pth"):
            table = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        else:
            raise UserError(f"features are read from .npy, .npz, .pt or .safetensors, not from '{path.name}'")
    except UserError:
        raise
    except Exception as error:  # of a damaged file: the parsers raise a dozen kinds, down to tokenize.TokenError
        raise UserError(f"the feature file {path} cannot be read ({' '.join(str(error).split())[:160]})") from error
    if isinstance(table, dict):
        table = table[_choose(path, [name for name, value in table.items() if isinstance(value, Tensor)], key)]
    if not isinstance(table, Tensor) or table.dim() < 2 or not table.is_floating_point():
        raise UserError(f"{path} must hold a floating-point array of shape (N, d)")
    return table.reshape(-1, table.shape[-1])


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype.kind != "f":
        raise ValueError(f"an array of {array.dtype}, where floating-point numbers are wanted")
    return torch.from_numpy(array)


def _choose(path: Path, names: list[str], key: str) -> str:
    if key in names:
        return key
    if not key and len(names) == 1:
        return names[0]
    wanted = f"has no array '{key}'" if key else "holds several arrays"
    raise UserError(f"{path} {wanted}: choose one of {', '.join(names[:8])}")


class FeatureRows:
    """A feature table as a keyed data set; ``batch`` returns ``features`` float32 (B, d)."""

    def __init__(self, features: Tensor) -> None:
        self.features = features

    def __len__(self) -> int:
        return len(self.features)

    def batch(self, keys: list[SampleKey]) -> dict[str, Tensor]:
        return {"features": self.features[torch.tensor([key.index for key in keys])].float()}
