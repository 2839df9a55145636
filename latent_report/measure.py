"""All measures of one tokenizer, group by group: figures with their standard errors, curves, and what is left out, and why."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowprior.errors import UserError
from flowprior.metrics.latent_statistics import (
    autocorrelation,
    high_frequency_ratio,
    spectral_entropy,
    total_variation,
    variance_shares,
)
from flowprior.metrics.sliced_wasserstein import sliced_wasserstein
from latent_report.bootstrap import Estimate, bootstrap
from latent_report.config import ReportConfig
from latent_report.left_out import TABLES, in_own_words, named_in
from latent_report.measures import distribution
from latent_report.opening.base import Latents

LEAST_SIDE = 4  # places along a side from which on frequencies are high or low
ONE_TOKEN = "there is one token per image"
FEW_DIRECTIONS = 64  # for the error of a sliced distance


@dataclass
class Results:
    """What was measured of a tokenizer."""

    figures: dict[str, Estimate] = field(default_factory=dict)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)  # why, by the name of a figure or a curve
    remarks: dict[str, str] = field(default_factory=dict)  # what else there is to know of a figure, by its name
    weights: dict[str, str] = field(default_factory=dict)  # fingerprints of the extractor, lpips and features
    pictures: dict[str, Tensor] = field(default_factory=dict)  # uint8 images (n, 3, H, H) by caption
    seconds: dict[str, float] = field(default_factory=dict)

    def curve(self, name: str, x: Tensor, y: Estimate) -> None:
        """Keep a curve."""
        self.curves[name] = {"x": x, "y": y.value, "error": y.error}

    def leave_out(self, reason: str, *names: str) -> None:
        """Say why figures or curves are missing, as far as they are and have no reason yet."""
        for name in names:
            if name not in self.figures and name not in self.curves:
                self.left_out.setdefault(name, reason)


@dataclass(frozen=True)
class Measured:
    """What the groups are given."""

    latents: Latents
    normalised: Tensor  # (N, T, C) in the canonical frame
    train: Tensor  # image numbers
    held_out: Tensor
    config: ReportConfig

    def resample(self, statistic: Callable[[Tensor], Tensor | float], halves: bool = False) -> Estimate:
        """:func:`bootstrap` over all images."""
        count = len(self.normalised)
        return bootstrap(statistic, count, self.config.resamples, self.config.seed, halves=halves)


Group = Callable[[Measured, Results], None]


def measure(
    latents: Latents,
    config: ReportConfig,
    groups: dict[str, Group],
    results: Results | None = None,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """The figures of every group. What cannot be measured of these latents is left out with a reason, and never stops the rest.

    Args:
        latents: of a tokenizer.
        config: of the report.
        groups: by name.
        results: of the first groups, where these were measured before: those that have their ``seconds``.
        keep: is given the results after every group.
    """
    normalised = canonical(distribution.normalised(latents.latents))
    order = torch.randperm(len(normalised), generator=torch.Generator().manual_seed(config.seed))
    held = max(2, round(config.held_out * len(order)))
    measured = Measured(latents, normalised, order[held:].sort().values, order[:held].sort().values, config)
    results = results or Results()
    for name in [name for name in groups if name not in results.seconds]:
        start = time.perf_counter()
        try:
            groups[name](measured, results)
        except (UserError, ValueError) as error:  # the measures' own: latents that have no spectrum, say
            results.leave_out(in_own_words(error), *named_in(name))
        results.seconds[name] = time.perf_counter() - start
        keep(results)
    return finished(results)


def finished(results: Results) -> Results:
    """Results of all groups, in which every figure and curve of the report is finite or has a reason why it is missing."""
    for name in [name for name, estimate in results.figures.items() if not math.isfinite(estimate.value)]:
        results.leave_out(f"it came out as {results.figures.pop(name).value}", name)
    measured_at_last = (
        results.figures.keys() | results.curves.keys()
    )  # a later group may measure what an earlier one could not
    results.left_out = {name: why for name, why in results.left_out.items() if name not in measured_at_last}
    results.leave_out("the small flows could not be trained", *(name for table in TABLES for name in table))
    return results


def canonical(latents: Tensor) -> Tensor:
    """``(N, T, C)`` on the principal axes of their channels, each pointing to where its third moment is positive.

    A rotation of the channels before this changes nothing behind it, so that no figure of a network depends on the channels' order or sign.
    """
    tokens = latents.double().flatten(0, 1)
    _, axes = torch.linalg.eigh(tokens.T @ tokens)
    turned = tokens @ axes.flip(1)
    signs = torch.where(turned.pow(3).mean(0) < 0, -1.0, 1.0)
    return (turned * signs).view(latents.shape).float()


def measure_distribution(measured: Measured, results: Results) -> None:
    """Deviations, rank, tails, distance to N(0, I), shares of variance."""
    raw, z, figures = measured.latents.latents, measured.normalised, results.figures
    channels, images = raw.shape[2], z.flatten(1)
    std = distribution.channel_deviations(raw)
    results.curve("channel_std", torch.arange(1, channels + 1), Estimate(std.sort(descending=True).values, None))
    if dead := int((std <= 1e-6 * std.max()).sum()):
        results.leave_out(f"{dead} of {channels} channels never vary", "channel_std_ratio")
    else:
        figures["channel_std_ratio"] = measured.resample(lambda i: _ratio(distribution.channel_deviations(raw[i])))
    figures["effective_rank"] = measured.resample(lambda i: distribution.effective_rank(z[i].flatten(0, 1)) / channels)
    figures["kurtosis"] = measured.resample(lambda i: distribution.excess_kurtosis(raw[i]))
    _measure_gaussian_distance(measured, results)
    if z.shape[1] < 2:
        results.leave_out(ONE_TOKEN, "variance_images", "variance_tokens", "variance_within")
    else:
        shares = measured.resample(lambda i: torch.tensor(variance_shares(z[i])))
        for place, name in enumerate(("variance_images", "variance_tokens", "variance_within")):
            figures[name] = Estimate(shares.value[place].item(), shares.error[place].item())
    if images.shape[1] > len(images):
        reason = f"{len(images)} images do not tell the spectrum of {images.shape[1]} dimensions"
        results.leave_out(reason, "effective_rank_images", "spectrum")
        return
    figures["effective_rank_images"] = measured.resample(lambda i: distribution.effective_rank(images[i]))
    spectrum = distribution.spectrum(images)
    results.curve("spectrum", torch.arange(1, len(spectrum) + 1), Estimate(spectrum, None))


def _measure_gaussian_distance(measured: Measured, results: Results) -> None:
    config = measured.config
    tokens = distribution.some_tokens(measured.normalised, distribution.POINTS, config.seed)  # (n, t, C)
    reference = distribution.white_noise(tokens.flatten(0, 1).shape, config.seed)

    def distance(images: Tensor) -> float:
        points = tokens[images].flatten(0, 1)
        return sliced_wasserstein(points, reference[: len(points)], FEW_DIRECTIONS)

    error = bootstrap(distance, len(tokens), config.resamples, config.seed, halves=True).error
    value = sliced_wasserstein(tokens.flatten(0, 1), reference)
    results.figures["gaussian_distance"] = Estimate(value, error)
    results.figures["gaussian_distance_floor"] = Estimate(*distribution.gaussian_floor(reference, config.seed))


def measure_places(measured: Measured, results: Results) -> None:
    """How latents vary along their places."""
    latents, figures = measured.latents, results.figures
    if latents.latents.shape[1] < 2:
        results.leave_out(ONE_TOKEN, *named_in("dependence"))
        return
    places = latents.latents.unflatten(1, latents.places)
    correlation = measured.resample(lambda i: autocorrelation(places[i]))
    results.curve("autocorrelation", torch.arange(len(correlation.value)), correlation)
    figures["neighbour_correlation"] = Estimate(correlation.value[1].item(), correlation.error[1].item())
    if min(latents.places) < LEAST_SIDE:
        few = f"{' x '.join(map(str, latents.places))} places have too few frequencies"
        results.leave_out(few, "high_frequency_ratio")
    for name, statistic in (
        ("spectral_entropy", spectral_entropy),
        ("high_frequency_ratio", high_frequency_ratio),
        ("total_variation", total_variation),
    ):
        if name not in results.left_out:
            figures[name] = measured.resample(lambda i, statistic=statistic: statistic(places[i]))


def _ratio(deviations: Tensor) -> float:
    return (deviations.max() / deviations.min().clamp(min=1e-12)).item()
