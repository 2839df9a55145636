"""All measures of one tokenizer, group by group: what each could be, its standard error, its curves, and why others are missing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowprior.errors import UserError, one_line
from flowprior.flow.likelihood import log_prob
from flowprior.metrics.latent_statistics import (
    autocorrelation,
    high_frequency_ratio,
    spectral_entropy,
    total_variation,
)
from latent_report.bootstrap import Estimate, bootstrap, mean
from latent_report.config import ReportConfig
from latent_report.flows import train_flows
from latent_report.measures import distribution, flow
from latent_report.opening.base import Latents

LIKELIHOOD_IMAGES = 200
STEPS_SAMPLES = 256
TOTAL_CORRELATION_END = 0.99  # beyond, the weight t / (1 - t) asks for what no small flow knows


@dataclass
class Results:
    """What was measured of a tokenizer."""

    figures: dict[str, Estimate] = field(default_factory=dict)
    curves: dict[str, dict[str, Any]] = field(default_factory=dict)
    not_measured: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)  # uint8 images (n, 3, H, H) by caption
    seconds: dict[str, float] = field(default_factory=dict)

    def curve(self, name: str, x: Tensor, y: Estimate) -> None:
        """Keep a curve."""
        self.curves[name] = {"x": x, "y": y.value, "error": y.error}


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


def measure(latents: Latents, config: ReportConfig, groups: dict[str, Group]) -> Results:
    """The figures of every group; what one cannot measure of these latents it leaves to the next with a reason."""
    normalised = canonical(distribution.normalised(latents.latents))
    order = torch.randperm(len(normalised), generator=torch.Generator().manual_seed(config.seed))
    held = max(2, round(config.held_out * len(order)))
    measured = Measured(latents, normalised, order[held:].sort().values, order[:held].sort().values, config)
    results = Results()
    for name, group in groups.items():
        start = time.perf_counter()
        try:
            group(measured, results)
        except (UserError, ValueError) as error:  # the measures' own: latents that have no spectrum, say
            results.not_measured[name] = one_line(error, limit=None)
        results.seconds[name] = time.perf_counter() - start
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
    figures["channel_std_ratio"] = measured.resample(lambda i: _ratio(distribution.channel_deviations(raw[i])))
    figures["effective_rank"] = measured.resample(lambda i: distribution.effective_rank(z[i].flatten(0, 1)) / channels)
    figures["kurtosis"] = measured.resample(lambda i: distribution.excess_kurtosis(raw[i]))
    distance = distribution.gaussian_distance(z.flatten(0, 1), measured.config.seed)
    figures["gaussian_distance"] = Estimate(distance.value, None)
    figures["gaussian_distance_floor"] = Estimate(distance.floor, None)
    shares = measured.resample(lambda i: torch.tensor(distribution.variance_shares(z[i])))
    for place, name in enumerate(("variance_images", "variance_tokens", "variance_within")):
        figures[name] = Estimate(shares.value[place].item(), shares.error[place].item())
    if images.shape[1] > len(images):
        reason = f"{len(images)} images do not tell the spectrum of {images.shape[1]} dimensions"
        results.not_measured["effective_rank_images"] = reason
        return
    figures["effective_rank_images"] = measured.resample(lambda i: distribution.effective_rank(images[i]))
    spectrum = distribution.spectrum(images)
    results.curve("spectrum", torch.arange(1, len(spectrum) + 1), Estimate(spectrum, None))


def measure_places(measured: Measured, results: Results) -> None:
    """How latents vary along their places."""
    latents, figures = measured.latents, results.figures
    if latents.latents.shape[1] < 2:
        results.not_measured["neighbour_correlation"] = "there is one token per image"
        return
    places = latents.latents.unflatten(1, latents.places)
    correlation = measured.resample(lambda i: autocorrelation(places[i]))
    results.curve("autocorrelation", torch.arange(len(correlation.value)), correlation)
    figures["neighbour_correlation"] = Estimate(correlation.value[1].item(), correlation.error[1].item())
    for name, statistic in (
        ("spectral_entropy", spectral_entropy),
        ("high_frequency_ratio", high_frequency_ratio),
        ("total_variation", total_variation),
    ):
        figures[name] = measured.resample(lambda i, statistic=statistic: statistic(places[i]))


def measure_flow(measured: Measured, results: Results) -> None:
    """Two small flows, trained on the spot, and what they and the latents themselves say of the velocity."""
    z, config, figures = measured.normalised, measured.config, results.figures
    held, (_, tokens, channels) = z[measured.held_out], z.shape
    token, together = train_flows(z[measured.train], config.flow, config.seed)
    grid = flow.TimeGrid.midpoints(config.flow.times)
    errors = {
        name: _errors(velocity, held, grid.t, config.seed) for name, velocity in (("token", token), ("all", together))
    }
    for name, key in (("token", "irreducible_variance_token"), ("all", "irreducible_variance")):
        figures[key] = mean((errors[name] * grid.weights).sum(1))
    results.curve("velocity_variance", grid.t, mean(errors["all"]))
    sample = flow.posterior_variance(z.flatten(1), measured.held_out, grid.t, config.seed)
    figures["irreducible_variance_sample"] = mean((sample * grid.weights).sum(1))
    results.curve("velocity_variance_sample", grid.t, mean(sample))
    if len(z) > tokens * channels:
        figures["irreducible_variance_gaussian"] = measured.resample(lambda i: _of_gaussian(z[i].flatten(1), grid))
    _measure_total_correlation(measured, results, token, together)
    figures["log_likelihood"] = mean(log_likelihoods(together, held[:LIKELIHOOD_IMAGES], config.seed))
    flat, shape = _on_vectors(together, tokens), (STEPS_SAMPLES, tokens * channels)
    figures["euler_steps"] = Estimate(float(flow.euler_steps_needed(flat, shape, seed=config.seed)), None)


def _measure_total_correlation(measured: Measured, results: Results, token: Any, together: Any) -> None:
    held, config = measured.normalised[measured.held_out], measured.config
    _, tokens, channels = held.shape
    if tokens < 2:
        results.not_measured["total_correlation"] = "there is one token per image"
        return
    grid = flow.TimeGrid.midpoints(config.flow.times, TOTAL_CORRELATION_END)
    apart, joined = (tokens * channels * _errors(velocity, held, grid.t, config.seed) for velocity in (token, together))
    results.figures["total_correlation"] = mean(flow.divergence_from_losses(apart, joined, grid))


def log_likelihoods(velocity: Any, latents: Tensor, seed: int = 0) -> Tensor:
    """Log-density under a flow of images at each of ``latents (N, T, C)``, in nats per channel, ``(N,)``."""
    vectors = latents.flatten(1)
    return (
        log_prob(_on_vectors(velocity, latents.shape[1]), vectors, rtol=1e-4, atol=1e-4, seed=seed) / vectors.shape[1]
    )


def _errors(velocity: Any, latents: Tensor, t: Tensor, seed: int) -> Tensor:
    """Squared errors of a velocity of images, per channel, ``(N, times)``."""
    return flow.squared_errors(lambda x, time: velocity(x, time.reshape(1)), latents, t, seed).mean(1)


def _on_vectors(velocity: Any, tokens: int) -> flow.Velocity:
    """A velocity of images ``(N, T, C)`` as one of vectors ``(N, T C)``, at one time for all."""
    return lambda x, t: velocity(x.unflatten(-1, (tokens, -1)), t.reshape(1)).flatten(-2)


def _of_gaussian(points: Tensor, grid: flow.TimeGrid) -> float:
    deviations = (distribution.spectrum(points) * points.double().var(0, correction=0).sum()).sqrt()
    return (flow.gaussian_irreducible_variance(deviations, grid.t) * grid.weights).sum().item()


def _ratio(deviations: Tensor) -> float:
    return (deviations.max() / deviations.min().clamp(min=1e-12)).item()
