"""Latents without their tokenizer: in a file, or in this project's latent cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowprior.data.latent_cache import LatentCache
from flowprior.data.order import SampleKey
from flowprior.errors import UserError
from flowprior.notes import note
from flowprior.run.archives import map_array, read_arrays
from flowprior.run.files import read_tensors
from latent_report.opening.base import ImageOptions, Latents, check_labels, directions, spread, without_images

SUFFIXES = (".npz", ".npy", ".safetensors")
LATENTS, LABELS = ("latents", "latent", "z"), ("labels", "label", "y")


def read_file(path: Path, options: ImageOptions) -> Latents:
    """Latents in a file: the array ``latents``, or another that can be no other, which is said; labels in ``labels``, if at all.

    Their shape is ``(N, T, C)``, ``(N, C, h, w)`` for feature maps, or ``(N, C)``, one token per image.

    Raises:
        UserError: the file is not there, damaged, or holds no such latents.
    """
    if not path.is_file():
        raise UserError(f"there is no file of latents at {path}")
    arrays = _arrays(path)
    latents, places = as_tokens(_chosen(arrays, path), path)
    labels = options.labels
    if labels is None and (name := _usual(arrays, LABELS, path)):
        labels = arrays[name]
    check = without_images(
        "latents in a file", latents, places, None if labels is None else _whole(labels, path), str(path)
    )
    return _some(check, options.count)


def read_cache(folder: Path, options: ImageOptions) -> Latents:
    """The first view of every image in a latent cache; of moments the mean."""
    cache = LatentCache(folder)
    if cache.manifest["origin"].get("posterior") == "sample":
        note(
            f"{folder} holds draws of a posterior: their noise is in all figures, where other tokenizers' are of the mean"
        )
    chosen = spread(len(cache), options.count)
    batch = cache.batch([SampleKey(index, -1) for index in chosen], draw=False)
    labels = batch["label"] if cache.num_classes > 1 else None
    if options.labels is not None:
        check_labels(options.labels, len(cache), str(folder))
        labels = options.labels[chosen]
    return without_images("latent cache", batch["latents"], cache.shape[:1], labels, str(folder))


def read_labels(path: str | Path) -> Tensor:
    """Labels int64 ``(N,)`` in an ``.npy`` file; a :class:`UserError` for anything else."""
    if not Path(path).is_file():
        raise UserError(f"there is no file of labels at {path}")
    array = map_array(Path(path), "file of labels")
    if array.dtype.kind not in "iu":
        raise UserError(f"the labels {path} are no whole numbers: save them as int64 in an .npy file")
    return _whole(torch.from_numpy(array.astype(np.int64)), Path(path))


def as_tokens(latents: Tensor, path: Path | str) -> tuple[Tensor, tuple[int, ...]]:
    """Latents of any accepted shape as float32 ``(N, T, C)``, and their places."""
    if latents.dim() == 4:
        return latents.float().flatten(2).transpose(1, 2).contiguous(), directions(tuple(latents.shape[2:]))
    if latents.dim() == 3:
        return latents.float(), (latents.shape[1],)
    if latents.dim() == 2:
        return latents.float().unsqueeze(1), (1,)
    raise UserError(
        f"the latents in {path} have shape {tuple(latents.shape)}: save them as (N, tokens, channels), or (N, channels, h, w)"
    )


def _arrays(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path, "file of latents")
    what = "file of latents"
    found = {"latents": map_array(path, what)} if path.suffix == ".npy" else read_arrays(path, what)
    return {name: _tensor(array) for name, array in found.items() if array is not None and array.dtype.kind in "fiu"}


def _tensor(array: np.ndarray) -> Tensor:
    """A copy that torch takes: in this machine's byte order, and no wider than float64."""
    kind = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, kind))


def _chosen(arrays: dict[str, Tensor], path: Path) -> Tensor:
    floats = {name: array for name, array in arrays.items() if array.is_floating_point()}
    name = _usual(floats, LATENTS, path) or (next(iter(floats)) if len(floats) == 1 else "")
    if not name:
        there = ", ".join(
            f"{name} of {str(array.dtype).removeprefix('torch.')}" for name, array in sorted(arrays.items())
        )
        none = (
            "no array of floating point"
            if not floats
            else "several arrays of floating point and none is called 'latents'"
        )
        raise UserError(f"{path} holds {none} (it has: {there or 'no numbers'})")
    if name not in LATENTS:
        note(f"of {path}, the array '{name}' is taken for the latents, the only one of floating point")
    if not floats[name].numel():
        raise UserError(f"the latents in {path} are empty, of shape {tuple(floats[name].shape)}")
    return floats[name]


def _usual(arrays: dict[str, Tensor], names: tuple[str, ...], path: Path) -> str:
    """Which of ``names`` is there, empty where none is; a :class:`UserError` where several are and the first of them is not."""
    there = [name for name in names if name in arrays]
    if len(there) > 1 and names[0] not in there:
        raise UserError(f"{path} holds {' and '.join(there)}: call the one that is meant '{names[0]}'")
    if there and there[0] != names[0]:
        note(f"of {path}, the array '{there[0]}' is taken for the {names[0]}")
    return there[0] if there else ""


def _whole(labels: Tensor, path: Path) -> Tensor:
    if labels.dim() != 1 or labels.is_floating_point():
        raise UserError(
            f"the labels of {path} have shape {tuple(labels.shape)} and are {labels.dtype}: give one whole number for each"
        )
    return labels.long()


def _some(whole: Latents, count: int) -> Latents:
    chosen = spread(len(whole.latents), count)
    whole.latents = whole.latents[chosen]
    whole.labels = None if whole.labels is None else whole.labels[chosen]
    return whole
