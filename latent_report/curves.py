"""Every curve of the report, as :mod:`latent_report.figures` has every number."""

from __future__ import annotations

from typing import NamedTuple


class Curve(NamedTuple):
    """Figures along an axis."""

    group: str
    label: str
    x: str
    y: str
    meaning: str
    log: bool = False  # the y axis is
    log_x: bool = False
    drawn_in: str = ""  # dashed, in the plot of another


CURVES = {
    "rfid_noise": Curve(
        "reconstruction",
        "rFID against noise",
        "noise, in each channel's deviation",
        "rFID",
        "How fast images fall apart as latents are disturbed: the flatter, the more errors a generator may make.",
        True,
    ),
    "psnr_noise": Curve(
        "reconstruction",
        "PSNR against noise",
        "noise, in each channel's deviation",
        "PSNR, dB",
        "The same, pixel by pixel.",
    ),
    "channel_std": Curve(
        "distribution",
        "deviation of channels",
        "channel, by rank",
        "std",
        "Deviations of the raw channels, the largest first.",
        True,
    ),
    "spectrum": Curve(
        "distribution",
        "spectrum of images",
        "principal axis",
        "share of variance",
        "How fast the variance of whole images' latents falls along their axes.",
        True,
    ),
    "velocity_variance": Curve(
        "flow",
        "irreducible variance against t",
        "t, noise to data",
        "per channel",
        "Solid, at most: held-out error of the small flow at each time.",
    ),
    "velocity_variance_sample": Curve(
        "flow",
        "irreducible variance against t",
        "t, noise to data",
        "per channel",
        "Dashed, at least: from the images' own latents; where it leaves the flow's, the sample no longer shows how paths cross.",
        drawn_in="velocity_variance",
    ),
    "euler_distance": Curve(
        "flow",
        "error of Euler's method",
        "Euler steps",
        "share of the deviation",
        "Sliced Wasserstein distance between samples of so many steps and the exactly solved ones, in units of the latents' deviation.",
        True,
        True,
    ),
    "autocorrelation": Curve(
        "dependence",
        "autocorrelation",
        "distance between places",
        "correlation",
        "How far along the places tokens know of each other.",
    ),
}
