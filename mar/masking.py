"""How many tokens a training step of MAR masks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from flowprior.training.randomness import StepRandom

if TYPE_CHECKING:
    from mar.model import MARConfig


def mask_ratio(config: MARConfig, generator: torch.Generator) -> float:
    """A draw from N(1, std^2) truncated to [min, 1], by inverting its distribution function."""
    low = 0.5 * (1 + math.erf((config.mask_ratio_min - 1) / config.mask_ratio_std / math.sqrt(2)))
    u = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    z = torch.special.ndtri(low + u * (0.5 - low))
    return min(1.0, 1 + config.mask_ratio_std * z.item())


def masked_count(config: MARConfig, tokens: int, random: StepRandom) -> int:
    """How many of ``tokens`` a step masks: the truncated normal's share of them, rounded up.

    With ``mask_counts`` it is one of :func:`few_counts`, whose mean is the same.
    """
    count = max(1, math.ceil(tokens * mask_ratio(config, random.host_generator("mask ratio"))))
    if not config.mask_counts:
        return count
    u = torch.rand((), generator=random.host_generator("mask count"), dtype=torch.float64, device="cpu").item()
    return neighbour(count, few_counts(config, tokens), u)


def few_counts(config: MARConfig, tokens: int) -> list[int]:
    """At most ``mask_counts`` numbers of masked tokens, evenly spaced between the fewest and all ``tokens``, rounded."""
    fewest, gaps = max(1, math.ceil(tokens * config.mask_ratio_min)), config.mask_counts - 1
    return sorted({fewest + round((tokens - fewest) * n / gaps) for n in range(gaps + 1)})


def neighbour(count: int, counts: list[int], u: float) -> int:
    """``count`` where it is one of ``counts``, else by ``u``, uniform on [0, 1), the next one below or above.

    Of the two, b below and a above, it is a with probability (count - b) / (a - b): the mean of what is returned is ``count``.
    """
    below = max((c for c in counts if c <= count), default=counts[0])  # rounding may take a share below its minimum
    above = min(c for c in counts if c >= count)
    return above if u * (above - below) < count - below else below
