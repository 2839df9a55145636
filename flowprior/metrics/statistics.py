"""First and second moments of features: what FID compares, the file they lie in, and gathering them without keeping features."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowprior.distributed import World
from flowprior.errors import UserError
from flowprior.run.archives import archive_members, is_archive, read_arrays
from flowprior.run.files import write_bytes


@dataclass(frozen=True)
class Statistics:
    """Mean ``mu (d,)`` and covariance ``sigma (d, d)`` of features, float64; how many, whose, of which crop and classes, where that is known.

    ``weights`` is the fingerprint of the extractor's. ``spatial`` are the moments of spatial Inception features, for sFID, where the file
    has them as ADM's have.
    """

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None
    extractor: str | None = None
    spatial: Statistics | None = None
    crop: str | None = None  # "centre 256", say
    class_counts: tuple[int, ...] | None = None
    weights: str | None = None

    @property
    def crop_name(self) -> str | None:
        """The crop without its size."""
        return self.crop and self.crop.rpartition(" ")[0]

    def save(self, path: str | Path) -> None:
        """Write ``path`` as ADM does (arrays ``mu``, ``sigma``), with ``count``, ``extractor`` and its ``weights``, ``crop`` and
        ``class_counts`` where known."""
        path = Path(path)
        arrays = {"mu": self.mu, "sigma": self.sigma}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        for name in ("extractor", "weights", "crop"):
            if (text := getattr(self, name)) is not None:
                arrays[name] = np.str_(text)
        if self.class_counts is not None:
            arrays["class_counts"] = np.array(self.class_counts, np.int64)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        try:
            write_bytes(path, buffer.getvalue())
        except OSError as error:
            raise UserError(f"cannot write statistics to {path}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read an ``.npz`` with ``mu (d,)`` and ``sigma (d, d)`` of any float dtype, and ``mu_s`` and ``sigma_s`` where both are there.

        Other arrays are tolerated.

        Raises:
            UserError: naming the file and what is wrong with it.
        """
        arrays = _read_arrays(Path(path))
        spatial = None
        if {"mu_s", "sigma_s"} <= set(arrays):
            spatial = cls(*_moments(arrays, "mu_s", "sigma_s", path), extractor="inception_spatial")
        mu, sigma = _moments(arrays, "mu", "sigma", path)
        extractor, crop, weights = (_optional_name(arrays, name) for name in ("extractor", "crop", "weights"))
        counts = _optional_class_counts(arrays)
        return cls(mu, sigma, _optional_count(arrays), extractor, spatial, crop, counts, weights)


def _moments(
    arrays: dict[str, np.ndarray], mu_name: str, sigma_name: str, path: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance as float64; a :class:`UserError` for what is neither."""
    for name in (mu_name, sigma_name):
        if name not in arrays:
            raise UserError(f"{path} has no array {name!r} (it has: {', '.join(sorted(arrays)) or 'none'})")
        if arrays[name].dtype.kind != "f":
            raise UserError(f"array {name!r} of {path} is {arrays[name].dtype}, not floating point")
    mu, sigma = (arrays[name].astype(np.float64) for name in (mu_name, sigma_name))
    if mu.ndim != 1 or mu.size == 0:
        raise UserError(f"{mu_name} of {path} has shape {mu.shape}; expected one dimension, (d,)")
    if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1]:
        raise UserError(f"{sigma_name} of {path} has shape {sigma.shape}; expected a square matrix, (d, d)")
    if len(mu) != len(sigma):
        raise UserError(f"{mu_name} and {sigma_name} of {path} disagree: {len(mu)} dimensions against {len(sigma)}")
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise UserError(f"{path} holds values that are not finite")
    tolerance = 1e-5 * max(np.abs(sigma).max(), 1e-30)
    if not np.allclose(sigma, sigma.T, rtol=1e-3, atol=tolerance) or np.trace(sigma) < 0:
        raise UserError(
            f"{sigma_name} of {path} is not a covariance: it must be symmetric with a trace that is not negative"
        )
    return mu, sigma


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"there is no statistics file {path}; fid_stats/README.md says how to make or get one")
    if not is_archive(path):
        raise UserError(f"{path} is not an .npz file")
    # Only what is used: a foreign file may carry pickled or very large arrays of its own.
    wanted = {"mu", "sigma", "count", "extractor", "weights", "crop", "class_counts"}
    wanted |= {"mu_s", "sigma_s"} if "sigma_s.npy" in archive_members(path) else set()
    arrays = read_arrays(path, "statistics file", wanted)
    return {name: np.empty(0) if array is None else array for name, array in arrays.items()}


def _optional_count(arrays: dict[str, np.ndarray]) -> int | None:
    count = arrays.get("count")
    return int(count) if count is not None and count.ndim == 0 and count.dtype.kind in "iu" else None


def _optional_class_counts(arrays: dict[str, np.ndarray]) -> tuple[int, ...] | None:
    counts = arrays.get("class_counts")
    known = counts is not None and counts.ndim == 1 and counts.dtype.kind in "iu" and counts.size and counts.min() >= 0
    return tuple(counts.tolist()) if known else None


def _optional_name(arrays: dict[str, np.ndarray], key: str) -> str | None:
    name = arrays.get(key)
    return str(name) if name is not None and name.ndim == 0 and name.dtype.kind == "U" else None


class StreamingMoments:
    """Mean and covariance of features that arrive in batches and are not kept.

    Centred sums in float64, joined pairwise (Chan, Golub and LeVeque 1979), so that a large mean costs no precision. The first batch
    decides on the dimension d and the device.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.empty(0, dtype=torch.float64)
        self.scatter = torch.empty(0, 0, dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add a batch ``(B, d)`` of any float dtype."""
        dim = len(self.mean) if self.count else features.shape[-1]
        if features.ndim != 2 or features.shape[1] != dim:
            raise ValueError(f"expected features (B, {dim}), got {tuple(features.shape)}")
        if len(features) == 0:
            return
        if self.count == 0:
            # Beside the features is fastest, but not every kind of device has float64.
            device = features.device if features.device.type == "cuda" else "cpu"
            self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
            self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        x = features.to(self.mean.device).double()
        mean = x.mean(dim=0)  # (d,)
        centred = x - mean  # (B, d)
        total = self.count + len(x)
        shift = mean - self.mean  # (d,)
        self.scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(x) / total)
        self.mean += shift * (len(x) / total)
        self.count = total

    def sum_over(self, world: World) -> None:
        """Join the moments of all processes; afterwards every process has those of all features."""
        if world.size == 1:
            return
        dims = torch.zeros(world.size, dtype=torch.long, device=world.device)
        dims[world.rank] = len(self.mean)
        dim = int(world.all_reduce(dims).max())
        if not self.count:  # fewer batches than processes
            self.mean, self.scatter = torch.zeros(dim).double(), torch.zeros(dim, dim).double()
        mean, scatter = self.mean.to(world.device), self.scatter.to(world.device)
        total = int(world.all_reduce(torch.tensor([self.count], device=world.device)))
        common = world.all_reduce(mean * (self.count / max(1, total)))
        shift = mean - common  # (d,)
        self.scatter = world.all_reduce(scatter + torch.outer(shift, shift) * self.count)
        self.mean, self.count = common, total

    def statistics(self, extractor: str | None = None, crop: str | None = None) -> Statistics:
        """The moments so far, with the unbiased covariance (divided by count - 1) that FID uses."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two features, got {self.count}")
        sigma = self.scatter / (self.count - 1)  # (d, d)
        return Statistics(self.mean.cpu().numpy().copy(), sigma.cpu().numpy(), self.count, extractor, crop=crop)
