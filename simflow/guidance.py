"""Guidance of an autoregressive flow: of the Gaussian that each token is drawn from, with the class and without it.

Given the tokens before it, a token is ``N(mean, exp(log_scale)^2)`` in every block, since the block maps standard normal noise affinely.
Classifier-free guidance with weight w wants a distribution proportional to ``p_c^(1 + w) / p_u^w``, of the conditional ``p_c`` and the
unconditional ``p_u``; the guidance scale of this project is ``1 + w``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

GuidanceKind = Literal["starflow", "tarflow", "mean"]


class Affine(NamedTuple):
    """Of tokens ``(B, T, C)``, the mean and the logarithm of the standard deviation."""

    mean: Tensor
    log_scale: Tensor


@dataclass(frozen=True)
class Guidance:
    """Combines what a block says with and without the class; the scale 1 leaves the former as it is.

    * ``starflow`` (arXiv 2506.06276) is the distribution above. It is Gaussian with precision ``(1 + w - w s) / sigma_c^2``, where
      ``s = sigma_c^2 / sigma_u^2``, and mean ``mu_c + w s / (1 + w - w s) (mu_c - mu_u)``. It exists while the precision is positive:
      s is clipped at 1 where w is.
    * ``tarflow`` (arXiv 2412.06329) moves both parameters along a straight line: ``mu_u + (1 + w) (mu_c - mu_u)``, and the logarithm of
      the scale alike.
    * ``mean`` is the distribution above where both Gaussians are given the conditional's variance, s = 1: the mean moves as in
      ``tarflow``, and the variance stays. It is derived here, not published.

    Args:
        kind: one of the three.
        scale: 1 + w; 0 is the unconditional model, but for the variance of ``mean``.
    """

    kind: GuidanceKind
    scale: float

    def __call__(self, conditional: Affine, unconditional: Affine) -> Affine:
        (mean, log_scale), w = conditional, self.scale - 1
        shift = mean - unconditional.mean
        if self.kind == "starflow":
            ratio = (2 * (log_scale - unconditional.log_scale)).exp()
            if w > 0:
                ratio = ratio.clamp(max=1)
            precision = 1 + w - w * ratio  # in units of the conditional's
            return Affine(mean + w * ratio / precision * shift, log_scale - 0.5 * precision.log())
        if self.kind == "tarflow":
            log_scale = log_scale + w * (log_scale - unconditional.log_scale)
        return Affine(mean + w * shift, log_scale)
