"""Every figure of the report: what it is called, what it means, and which direction helps. The page and the JSON are made from this table."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from flowprior.rounding import rounded_with_error

Better = Literal["higher", "lower", ""]

GROUPS = {
    "reconstruction": "Reconstruction: what the decoder makes of latents, whole and disturbed",
    "distribution": "Distribution: how latents are spread",
    "dependence": "Dependence: what tokens say of each other",
    "flow": "Flow: how hard the velocity is to know",
    "semantics": "Semantics: what latents know of the image",
    "alignment": "Alignment: how far latents are from the given prior",
}

GLANCE = (
    "rfid",
    "rfid_noise_0.4",
    "irreducible_variance",
    "variance_tokens",
    "total_correlation",
    "euler_steps",
    "probe_accuracy",
)  # at the head of the page
GLANCE_CURVES = ("rfid_noise",)  # below these


class Figure(NamedTuple):
    """One number of the report."""

    group: str
    label: str
    meaning: str
    better: Better = ""
    form: str = ".3f"
    unit: str = ""


FIGURES = {
    "psnr": Figure(
        "reconstruction",
        "PSNR",
        "How close reconstructions are to their images, pixel by pixel.",
        "higher",
        ".2f",
        "dB",
    ),
    "ssim": Figure("reconstruction", "SSIM", "How alike local structure is, between -1 and 1.", "higher", ".4f"),
    "lpips": Figure(
        "reconstruction", "LPIPS", "How far reconstructions are from their images in VGG's features.", "lower", ".4f"
    ),
    "rfid": Figure(
        "reconstruction",
        "rFID",
        "Fréchet distance between images and reconstructions: no generator on these latents gets below what the decoder loses.",
        "lower",
    ),
    "rfid_noise_0.4": Figure(
        "reconstruction",
        "rFID, noise 0.4",
        "The rFID of latents that carry noise of 0.4 of each channel's deviation, as a generator's errors do: a decoder that bears it forgives them.",
        "lower",
    ),
    "midpoint_fid": Figure(
        "reconstruction",
        "FD of midpoints",
        "Fréchet distance of images decoded half-way between two images' latents: low where the space between latents is filled with images.",
        "lower",
    ),
    "midpoints_sure": Figure(
        "reconstruction",
        "midpoints recognised",
        "Share of those images in which a classifier gives one class 90 % or more.",
        "higher",
        ".1%",
    ),
    "channel_std_ratio": Figure(
        "distribution",
        "std, largest / smallest",
        "Ratio of the channels' deviations: 1 where one scale fits all, as cache.scale_per=all assumes.",
        "lower",
        ".2f",
    ),
    "effective_rank": Figure(
        "distribution",
        "effective rank of tokens",
        "Share of the channels that tokens make use of, exp of the spectrum's entropy over C: 1 where all axes have equal variance.",
        "",
        ".1%",
    ),
    "effective_rank_images": Figure(
        "distribution",
        "effective rank of images",
        "Axes that whole images' latents spread over, exp of the entropy of their spectrum: the fewer, the more of the space is empty.",
        "",
        ".1f",
    ),
    "kurtosis": Figure(
        "distribution",
        "excess kurtosis",
        "Weight of the tails, 0 of a Gaussian: outliers cost a generator accuracy everywhere else.",
        "",
        ".2f",
    ),
    "gaussian_distance": Figure(
        "distribution",
        "distance to N(0, I)",
        "Sliced Wasserstein distance of tokens, centred and under one scale for all channels, from N(0, I).",
        "lower",
        ".4f",
    ),
    "gaussian_distance_floor": Figure(
        "distribution",
        "floor of that distance",
        "The same distance between two samples of N(0, I) of this size, which latents that are N(0, I) would have.",
        "",
        ".4f",
    ),
    "variance_images": Figure(
        "distribution",
        "variance between images",
        "Share of the variance that is alike for all tokens of an image: 0 where they are independent, below it where they repel each other.",
        "",
        ".1%",
    ),
    "variance_tokens": Figure(
        "distribution",
        "variance between tokens",
        "Share that is alike for all images, a token's own mean: a generator knows it by the token's place.",
        "",
        ".1%",
    ),
    "variance_within": Figure(
        "distribution", "variance within", "What is left: a token's own in its image.", "", ".1%"
    ),
    "total_correlation": Figure(
        "dependence",
        "total correlation",
        "What tokens of an image know of each other, lost where each is drawn by itself. Less by what the flow of images has not learned.",
        "",
        ".2f",
        "nats",
    ),
    "neighbour_correlation": Figure(
        "dependence",
        "correlation of neighbours",
        "Correlation of a channel at two neighbouring places: coherence, which eases generation. Of learned tokens it tells the order alone.",
        "higher",
    ),
    "spectral_entropy": Figure(
        "dependence",
        "spectral entropy",
        "How evenly power is spread over frequencies along the places: 1 is white noise, low is smooth or periodic.",
        "lower",
        ".4f",
    ),
    "high_frequency_ratio": Figure(
        "dependence",
        "high frequencies",
        "Share of the power above half of the highest frequency along the places.",
        "lower",
        ".1%",
    ),
    "total_variation": Figure(
        "dependence",
        "total variation",
        "Mean step between neighbouring places in units of each channel's deviation; 1.13 where places are independent and Gaussian.",
        "lower",
    ),
    "irreducible_variance": Figure(
        "flow",
        "irreducible variance, at most",
        "What no network can know of the velocity, per channel, over the whole path: the small flow's held-out error lies above it. 1.57 of N(0, I).",
        "lower",
        ".4f",
    ),
    "irreducible_variance_sample": Figure(
        "flow",
        "irreducible variance, at least",
        "The same from the images' own latents as neighbours, with no training. A sample's paths cross less than the distribution's, the less the "
        "fewer images and the more values they have: compare it with the bound above it alone.",
        "",
        ".4f",
    ),
    "irreducible_variance_gaussian": Figure(
        "flow",
        "irreducible variance, Gaussian",
        "That of a Gaussian with this covariance, in closed form, a bound from above too: what structure beyond it saves is the gap to the flow.",
        "",
        ".4f",
    ),
    "irreducible_variance_token": Figure(
        "flow",
        "irreducible variance, tokens",
        "Held-out error of the flow that sees one token at a time, by its place.",
        "lower",
        ".4f",
    ),
    "log_likelihood": Figure(
        "flow",
        "log-likelihood",
        "Of held-out latents under the small flow, in nats per normalised channel; -1.42 of N(0, I). High where latents fill little of the space.",
        "",
        ".3f",
        "nats",
    ),
    "euler_steps": Figure(
        "flow",
        "Euler steps to 1 %",
        "Steps that bring samples within 1 % of the latents' deviation of the exactly solved flow's: straight paths need few.",
        "lower",
        ".0f",
    ),
    "knn_accuracy": Figure(
        "semantics",
        "k-NN accuracy",
        "Held-out images whose class most of the 20 nearest latents have.",
        "higher",
        ".1%",
    ),
    "probe_accuracy": Figure(
        "semantics",
        "linear probe",
        "Held-out images whose class logistic regression reads off the latents.",
        "higher",
        ".1%",
    ),
    "cka": Figure(
        "semantics",
        "linear CKA",
        "How alike the latents' geometry is to that of the reference features, between 0 and 1.",
        "higher",
    ),
    "cknna": Figure(
        "semantics",
        "CKNNA",
        "The same over the pairs that are near neighbours in both, by cosines of the normalised latents.",
        "higher",
    ),
    "alignment_loss": Figure(
        "alignment",
        "alignment loss",
        "Eq. 5 at the latents, per channel: how badly the frozen prior predicts their velocity.",
        "lower",
        ".4f",
    ),
    "prior_log_distance": Figure(
        "alignment", "log k-NN distance", "Mean log distance to the 5th nearest of the prior's samples.", "lower", ".3f"
    ),
    "prior_divergence": Figure(
        "alignment",
        "KL from the prior",
        "Divergence of the tokens' distribution from the prior's, by an online flow, in nats per token.",
        "lower",
        ".2f",
        "nats",
    ),
}


def number(figure: Figure, entry: dict[str, Any] | None) -> str:
    """A figure with its standard error, as text; a dash where there is none."""
    if entry is None or entry["value"] is None:
        return "-"
    value, error = rounded_with_error(entry["value"], entry["error"], figure.form)
    return value + (f" ± {error}" if error else "") + (f" {figure.unit}" if figure.unit else "")
