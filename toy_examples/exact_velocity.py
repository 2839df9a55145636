"""The velocity that flow matching would learn with endless data: ``v(x, t) = E[x1 - x0 | x_t = x]``, the posterior mean.

Given the point of the skeleton that a sample stems from (a mean, a node of the curve), ``x1`` and ``x_t`` are jointly Gaussian
and the conditional mean is linear; the skeleton's points are then averaged with their posterior weights. For the rings, whose
noise is radial, the angle is integrated out in closed form (Bessel functions) and the radius by Gauss-Hermite quadrature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from toy_examples.distributions import ConcentricRings, IsotropicNoise, ToyDistribution

HERMITE_NODES = 24
SMALLEST_REMAINDER = 1e-4  # of 1 - t: below it a velocity would divide rounding errors by it
TOKENS_PER_CHUNK = 8192


def exact_velocity(target: ToyDistribution) -> Callable[[Tensor, Tensor], Tensor]:
    """``v(x, t)`` of the flow to ``target``, with gradients, for ``x (..., 2)`` and ``t`` that broadcasts as in VelocityMLP."""
    if isinstance(target, IsotropicNoise):
        return _in_chunks(IsotropicVelocity(target))
    if isinstance(target, ConcentricRings):
        return _in_chunks(RingsVelocity(target))
    raise TypeError(f"no exact velocity is known for {type(target).__name__}")


def fingerprint(name: str) -> str:
    """What a run on the exact velocity of the distribution called ``name`` remembers in place of a network's fingerprint."""
    return hashlib.sha256(f"exact {name}".encode()).hexdigest()[:16]


class IsotropicVelocity:
    """Posterior mean under isotropic noise around weighted points.

    Given point k: ``x_t ~ N(t m_k, var I)`` with ``var = t^2 s^2 + (1 - t)^2``, and
    ``E[x1 - x0 | x_t, k] = m_k + (t s^2 - (1 - t)) / var (x_t - t m_k)``.
    """

    def __init__(self, target: IsotropicNoise) -> None:
        self.means = target.nodes / target.std  # (K, 2)
        self.log_weights, self.noise_std = target.log_weights, target.noise_std / target.std

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        means, variance = self.means.to(x), t**2 * self.noise_std**2 + (1 - t) ** 2  # (K, 2), (N, 1)
        # |x - t m|^2 without the part that all k share
        closeness = (t * (x @ means.T) - t**2 * means.square().sum(-1) / 2) / variance  # (N, K)
        posterior = (self.log_weights.to(x) + closeness).softmax(-1)
        mean = posterior @ means  # (N, 2)
        return mean + (t * self.noise_std**2 - (1 - t)) / variance * (x - t * mean)


class RingsVelocity:
    """Posterior mean under radial noise on circles about the origin.

    Given ring k the radius r is N(R_k, s^2); given r, the angle is uniform, and ``x_t`` has the density
    ``exp(-(|x| - t r)^2 / 2 n^2) i0e(|x| t r / n^2) / (2 pi n^2)`` with ``n = 1 - t``, and the posterior mean of the direction is
    ``i1e / i0e`` along x. The two Gaussians in r multiply to a Gaussian, on whose Gauss-Hermite nodes the Bessel factor is summed.
    """

    def __init__(self, target: ConcentricRings) -> None:
        self.radii, self.noise_std = target.radii / target.std, target.noise_std / target.std
        nodes, weights = np.polynomial.hermite_e.hermegauss(HERMITE_NODES)
        self.nodes, self.log_weights = torch.from_numpy(nodes), torch.from_numpy(weights).log()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        dtype = x.dtype
        x, t = x.double(), t.double()
        n = (1 - t).clamp(min=SMALLEST_REMAINDER)  # (N, 1)
        norm = x.norm(dim=-1, keepdim=True).clamp(min=1e-9)
        radii, variance = self.radii.to(x.device), self.noise_std**2
        total = n**2 + t**2 * variance
        centre = (radii * n**2 + t * norm * variance) / total  # (N, 3)
        spread = (variance * n**2 / total).sqrt()
        radius = centre.unsqueeze(-1) + spread.unsqueeze(-1) * self.nodes.to(x.device)  # (N, 3, H)
        kappa = (norm * t / n**2).unsqueeze(-1) * radius
        bessel = torch.special.i0e(kappa)
        evidence = -((norm - t * radii) ** 2) / (2 * total)  # (N, 3)
        log_posterior = evidence.unsqueeze(-1) + self.log_weights.to(x.device) + bessel.log()
        posterior = log_posterior.flatten(1).softmax(-1)  # (N, 3 H)
        along = (posterior * (radius * torch.special.i1e(kappa) / bessel).flatten(1)).sum(-1, keepdim=True)
        return ((along * x / norm - x) / n).to(dtype)  # (N, 2)


def _in_chunks(velocity: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Tokens and times spelled out, one time for each token, and bounded memory."""

    def whole(x: Tensor, t: Tensor | float) -> Tensor:
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
        t = t.reshape((1,) * (x.dim() - 1 - t.dim()) + t.shape).expand(x.shape[:-1])
        tokens, times = x.reshape(-1, 2), t.reshape(-1, 1)
        parts = zip(tokens.split(TOKENS_PER_CHUNK), times.split(TOKENS_PER_CHUNK))
        return torch.cat([velocity(token, time) for token, time in parts]).view(x.shape)

    return whole
