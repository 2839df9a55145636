"""First and second moments of features: what FID compares, the file they lie in, and gathering them without keeping features."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from flowprior.errors import UserError
from flowprior.training.files import write_bytes


@dataclass(frozen=True)
class Statistics:
    """Mean ``mu (d,)`` and covariance ``sigma (d, d)`` of features, float64; how many, and whose, where that is known."""

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None
    extractor: str | None = None

    def save(self, path: str | Path) -> None:
        """Write ``path`` as ADM does (arrays ``mu``, ``sigma``), with ``count`` and ``extractor`` beside them when known."""
        path = Path(path)
        arrays = {"mu": self.mu, "sigma": self.sigma}
        if self.count is not None:
            arrays["count"] = np.int64(self.count)
        if self.extractor is not None:
            arrays["extractor"] = np.str_(self.extractor)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        try:
            write_bytes(path, buffer.getvalue())
        except OSError as error:
            raise UserError(f"cannot write statistics to {path}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read an ``.npz`` with ``mu (d,)`` and ``sigma (d, d)`` of any float dtype; other arrays are tolerated.

        Raises:
            UserError: naming the file and what is wrong with it.
        """
        arrays = _read_arrays(Path(path))
        for name in ("mu", "sigma"):
            if name not in arrays:
                raise UserError(f"{path} has no array {name!r} (it has: {', '.join(sorted(arrays)) or 'none'})")
            if arrays[name].dtype.kind != "f":
                raise UserError(f"array {name!r} of {path} is {arrays[name].dtype}, not floating point")
        mu, sigma = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
        if mu.ndim != 1 or mu.size == 0:
            raise UserError(f"mu of {path} has shape {mu.shape}; expected one dimension, (d,)")
        if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1]:
            raise UserError(f"sigma of {path} has shape {sigma.shape}; expected a square matrix, (d, d)")
        if len(mu) != len(sigma):
            raise UserError(f"mu and sigma of {path} disagree: {len(mu)} dimensions against {len(sigma)}")
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise UserError(f"{path} holds values that are not finite")
        if not np.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-5 * max(np.abs(sigma).max(), 1e-30)) or np.trace(sigma) < 0:
            raise UserError(f"sigma of {path} is not a covariance: it must be symmetric with a trace that is not negative")
        return cls(mu, sigma, _optional_count(arrays), _optional_name(arrays))


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"there is no statistics file {path}; fid_stats/README.md says how to make or get one")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not an .npz file")
    try:
        with np.load(path, allow_pickle=False) as archive:
            # Only what is used: a foreign file may carry pickled or very large arrays of its own.
            wanted = [name for name in ("mu", "sigma", "count", "extractor") if name in archive.files]
            others = {name: np.empty(0) for name in archive.files if name not in wanted}
            arrays = others | {name: archive[name] for name in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise UserError(f"{path} cannot be read: it is a zip file, but what lies in it are not arrays")
    return arrays


def _optional_count(arrays: dict[str, np.ndarray]) -> int | None:
    count = arrays.get("count")
    return int(count) if count is not None and count.ndim == 0 and count.dtype.kind in "iu" else None


def _optional_name(arrays: dict[str, np.ndarray]) -> str | None:
    name = arrays.get("extractor")
    return str(name) if name is not None and name.ndim == 0 and name.dtype.kind == "U" else None


class StreamingMoments:
    """Mean and covariance of features that arrive in batches and are not kept.

    Centred sums in float64, joined pairwise (Chan, Golub and LeVeque 1979), so that a large mean costs no precision.

    Args:
        dim: d, the features' dimension.
        device: where the ``(d, d)`` sum lives; beside the features is fastest.
    """

    def __init__(self, dim: int, device: str | torch.device = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor) -> None:
        """Add a batch ``(B, d)`` of any float dtype."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"expected features (B, {len(self.mean)}), got {tuple(features.shape)}")
        if len(features) == 0:
            return
        x = features.to(self.mean.device, torch.float64)
        mean = x.mean(dim=0)  # (d,)
        centred = x - mean  # (B, d)
        self._join(len(x), mean, centred.T @ centred)

    def merge(self, other: StreamingMoments) -> None:
        """Add everything that ``other`` has seen."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"cannot merge moments of {len(other.mean)} dimensions into {len(self.mean)}")
        self._join(other.count, other.mean.to(self.mean.device), other.scatter.to(self.mean.device))

    def merge_processes(self) -> None:
        """Make every process of the default group hold the moments of all; a collective call, a no-op outside a group.

        The processes' parts are joined in the order of their ranks, so that all end with the same bits.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return
        dim = len(self.mean)
        count = torch.full((1,), float(self.count), dtype=torch.float64, device=self.mean.device)
        packed = torch.cat([count, self.mean, self.scatter.flatten()])  # (1 + d + d * d,)
        total = StreamingMoments(dim, self.mean.device)
        for rank in range(dist.get_world_size()):
            part = packed.clone()
            dist.broadcast(part, src=rank)
            total._join(int(part[0]), part[1 : 1 + dim], part[1 + dim :].view(dim, dim))
        self.count, self.mean, self.scatter = total.count, total.mean, total.scatter

    def statistics(self, extractor: str | None = None) -> Statistics:
        """The moments so far, with the unbiased covariance (divided by count - 1) that FID uses."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two features, got {self.count}")
        sigma = self.scatter / (self.count - 1)  # (d, d)
        return Statistics(self.mean.cpu().numpy().copy(), sigma.cpu().numpy(), self.count, extractor)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        total = self.count + count
        shift = mean - self.mean  # (d,)
        self.scatter = self.scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
