"""The group of measures that trains small flows on the latents: what these, and the latents themselves, say of the velocity."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from flowprior.flow.likelihood import log_prob
from latent_report.bootstrap import Estimate, mean
from latent_report.flows import train_flows
from latent_report.measure import ONE_TOKEN, Measured, Results
from latent_report.measures import distribution, flow
from latent_report.opening.base import spread

LIKELIHOOD_IMAGES = 200
STEPS_SAMPLES = 256
TOTAL_CORRELATION_END = 0.99  # beyond, the weight t / (1 - t) asks for what no small flow knows


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
    else:
        reason = f"{len(z)} images do not tell the covariance of {tokens * channels} dimensions"
        results.leave_out(reason, "irreducible_variance_gaussian")
    measure_total_correlation(measured, results, token, together)
    figures["log_likelihood"] = mean(log_likelihoods(together, held[spread(len(held), LIKELIHOOD_IMAGES)], config.seed))
    remark_on_budget(results)
    flat, shape = _on_vectors(together, tokens), (STEPS_SAMPLES, tokens * channels)
    euler = flow.euler_steps(flat, shape, resamples=config.resamples, seed=config.seed)
    figures["euler_steps"] = Estimate(euler.needed, euler.error)
    results.curve("euler_distance", euler.tried, Estimate(euler.distances, euler.errors))


def remark_on_budget(results: Results) -> None:
    """Say so where the small flow's bound lies above the Gaussian's.

    A linear prediction errs as on a Gaussian of this covariance, so that its closed form bounds the irreducible variance as well, but for a
    covariance that is fitted to the images that it is measured on. The smaller of both would be no bound that is sure; the flow's is held out.
    """
    flow, gaussian = (results.figures.get(f"irreducible_variance{name}") for name in ("", "_gaussian"))
    if flow is not None and gaussian is not None and flow.value > gaussian.value:
        results.remarks["irreducible_variance"] = (
            f"it lies above the {gaussian.value:.4f} of a Gaussian with this covariance: the small flow has not learned more than the "
            "covariance, which takes more of flow.steps= or images="
        )
        told = "as the irreducible variance tells"
        for name, remark in {
            "total_correlation": f"it is off by what the two small flows have not learned, {told}: too low where the flow of images has "
            "learned less, too high where that of single tokens has",
            "log_likelihood": f"it is too low by what the small flow has not learned, {told}",
        }.items():
            if name in results.figures:
                results.remarks[name] = remark


def measure_total_correlation(measured: Measured, results: Results, token: Any, together: Any) -> None:
    """From the held-out errors of a flow of single tokens and one of images; left out where no divergence has such a value."""
    held, config = measured.normalised[measured.held_out], measured.config
    _, tokens, channels = held.shape
    if tokens < 2:
        results.leave_out(ONE_TOKEN, "total_correlation")
        return
    grid = flow.TimeGrid.midpoints(config.flow.times, TOTAL_CORRELATION_END)
    apart, joined = (tokens * channels * _errors(velocity, held, grid.t, config.seed) for velocity in (token, together))
    found = mean(flow.divergence_from_losses(apart, joined, grid))
    if found.value < -2 * found.error:  # no divergence is below 0
        reason = (
            f"the flow of images learned less than that of single tokens ({found.value:.1f} nats): it takes more images"
        )
        results.leave_out(reason, "total_correlation")
        return
    results.figures["total_correlation"] = found


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
