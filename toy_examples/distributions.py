"""The six two-dimensional targets, with exact densities, divided by their overall standard deviation.

All are noise around a skeleton. Where the noise is isotropic, the density is the noise's Gaussian averaged over the skeleton:
a finite sum for points, one-dimensional Gauss-Legendre quadrature along curves. Where it is radial, the density is that of
the radius over the circumference. The standard deviation, taken over the numbers of both coordinates together, follows from
the same sum or quadrature; nothing is measured on samples.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from flowprior.errors import UserError

POINTS_PER_CHUNK = 4096


class ToyDistribution(ABC):
    """A distribution in the plane. Subclasses speak of raw coordinates; :meth:`sample` and :meth:`log_density` of normalised ones.

    Attributes:
        std: overall standard deviation before normalising.
    """

    std: float

    @abstractmethod
    def _sample_raw(self, count: int, generator: torch.Generator | None) -> Tensor: ...

    @abstractmethod
    def _log_density_raw(self, points: Tensor) -> Tensor: ...

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """``(count, 2)`` float32, of overall standard deviation 1."""
        return self._sample_raw(count, generator).div_(self.std).float()

    def log_density(self, points: Tensor) -> Tensor:
        """Exact log-density at normalised ``points (N, 2)``, ``(N,)`` float64; the Jacobian of the division by ``std`` is in it."""
        raw = points.detach().double().cpu() * self.std
        return torch.cat([self._log_density_raw(chunk) for chunk in raw.split(POINTS_PER_CHUNK)]) + 2 * math.log(
            self.std
        )


class IsotropicNoise(ToyDistribution):
    """Gaussian noise around a random point of a skeleton.

    Args:
        nodes: ``(K, 2)``, points of the skeleton.
        weights: ``(K,)``, summing to one: the skeleton's points, or a quadrature along it.
        noise_std: of the noise, in both directions.
    """

    def __init__(self, nodes: Tensor, weights: Tensor, noise_std: float) -> None:
        self.nodes, self.log_weights, self.noise_std = nodes, weights.log(), noise_std
        mean = (weights @ nodes).mean()
        self.std = float(((weights @ (nodes - mean).square()).mean() + noise_std**2).sqrt())

    @abstractmethod
    def _skeleton(self, count: int, generator: torch.Generator | None) -> Tensor:
        """``(count, 2)`` random points of the skeleton."""

    def _sample_raw(self, count: int, generator: torch.Generator | None) -> Tensor:
        points = self._skeleton(count, generator)
        return points + self.noise_std * torch.randn(count, 2, generator=generator, dtype=torch.float64)

    def _log_density_raw(self, points: Tensor) -> Tensor:
        squared = (points[:, None] - self.nodes).square().sum(-1)  # (N, K)
        log_terms = self.log_weights - squared / (2 * self.noise_std**2)
        return log_terms.logsumexp(-1) - math.log(2 * math.pi * self.noise_std**2)


class GaussianMixture(IsotropicNoise):
    """Equally likely Gaussians around ``means (K, 2)``."""

    def __init__(self, means: Tensor, noise_std: float) -> None:
        super().__init__(means, torch.full((len(means),), 1 / len(means), dtype=torch.float64), noise_std)

    def _skeleton(self, count: int, generator: torch.Generator | None) -> Tensor:
        return self.nodes[torch.randint(len(self.nodes), (count,), generator=generator)]


class NoisyCurves(IsotropicNoise):
    """Noise around equally likely curves.

    Args:
        curves: each from parameters ``(n,)`` to points ``(n, 2)``.
        end: the parameter is uniform on [0, end].
        noise_std: of the noise.
        nodes: of the quadrature along each curve; a noise's width apart at most, they leave no visible error.
    """

    def __init__(
        self, curves: list[Callable[[Tensor], Tensor]], end: float, noise_std: float, nodes: int = 256
    ) -> None:
        self.curves, self.end = curves, end
        positions, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(nodes))  # on [-1, 1]
        points = torch.cat([curve((positions + 1) / 2 * end) for curve in curves])
        super().__init__(points, (weights / 2 / len(curves)).repeat(len(curves)), noise_std)

    def _skeleton(self, count: int, generator: torch.Generator | None) -> Tensor:
        parameter = self.end * torch.rand(count, generator=generator, dtype=torch.float64)
        which = torch.randint(len(self.curves), (count, 1), generator=generator)
        return (
            torch.stack([curve(parameter) for curve in self.curves], 1).take_along_dim(which[..., None], 1).squeeze(1)
        )


class ConcentricRings(ToyDistribution):
    """Equally likely circles about the origin, with Gaussian noise on the radius."""

    def __init__(self, radii: Tensor, noise_std: float) -> None:
        self.radii, self.noise_std = radii, noise_std
        self.std = float(((radii.square().mean() + noise_std**2) / 2).sqrt())

    def _sample_raw(self, count: int, generator: torch.Generator | None) -> Tensor:
        radius = self.radii[torch.randint(len(self.radii), (count,), generator=generator)]
        radius = radius + self.noise_std * torch.randn(count, generator=generator, dtype=torch.float64)
        return _polar(radius, 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64))

    def _log_density_raw(self, points: Tensor) -> Tensor:
        radius = points.norm(dim=-1, keepdim=True).clamp(min=1e-9)  # (N, 1)
        offset = torch.stack([radius - self.radii, radius + self.radii])  # a negative radius lands on the opposite side
        log_terms = -offset.square() / (2 * self.noise_std**2) - math.log(
            len(self.radii) * math.sqrt(2 * math.pi) * self.noise_std
        )
        return log_terms.logsumexp((0, -1)) - (2 * math.pi * radius.squeeze(-1)).log()


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def _mixture() -> ToyDistribution:
    angles = 2 * math.pi * torch.arange(5, dtype=torch.float64) / 5
    return GaussianMixture(_polar(torch.tensor(3.0), angles), 0.3)


def _grid() -> ToyDistribution:
    line = torch.arange(4, dtype=torch.float64) - 1.5
    return GaussianMixture(torch.cartesian_prod(line, line), 0.1)


def _moons() -> ToyDistribution:
    two = torch.tensor(2.0, dtype=torch.float64)
    lower_centre = torch.tensor([2.0, -0.5], dtype=torch.float64)
    return NoisyCurves([lambda a: _polar(two, a), lambda a: lower_centre + _polar(two, -a)], math.pi, 0.1)


def _rings() -> ToyDistribution:
    return ConcentricRings(torch.tensor([4 / 3, 8 / 3, 4.0], dtype=torch.float64), 0.1)


def _spiral() -> ToyDistribution:
    return NoisyCurves([lambda theta: _polar(0.5 + theta / (2 * math.pi), theta)], 3 * math.pi, 0.1)


def _swiss_roll() -> ToyDistribution:
    return NoisyCurves([lambda s: _polar(s / math.pi, s)], 6 * math.pi, 0.1, nodes=1024)


DISTRIBUTIONS: dict[str, Callable[[], ToyDistribution]] = {
    "mixture": _mixture,
    "grid": _grid,
    "moons": _moons,
    "rings": _rings,
    "spiral": _spiral,
    "swiss_roll": _swiss_roll,
}


@lru_cache
def distribution(name: str) -> ToyDistribution:
    """The distribution called ``name``, with the paper's parameters (Sec. 5.1).

    Raises:
        UserError: there is none of that name.
    """
    if name not in DISTRIBUTIONS:
        raise UserError(f"there is no distribution '{name}': choose one of {', '.join(DISTRIBUTIONS)}, or all")
    return DISTRIBUTIONS[name]()


def sample(name: str, count: int, generator: torch.Generator | None = None) -> Tensor:
    """``(count, 2)`` normalised points of the distribution called ``name``."""
    return distribution(name).sample(count, generator)
