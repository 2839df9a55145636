"""What generators will make of a tokenizer, expected from the figures of its report by what a study has fitted (bash scripts/study.sh --forecast).

A forecast is a linear model without intercept: the logarithm of a generator's FID, as a ratio to that on the latents of the study's row
without a regulariser, by how far a few figures are from that row's.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowprior.data.images import ImageConfig
from flowprior.errors import UserError
from flowprior.run.config import changed_options, to_dict
from flowprior.run.files import read_json
from latent_report.config import PROTOCOL_VERSION, ReportConfig
from latent_report.figures import FIGURES, number

FORECASTS = Path(__file__).parent / "forecasts"
FORMAT_VERSION = 1
NETWORKS = {"extractor": "the extractor's weights", "lpips": "LPIPS' VGG-16", "features": "the timm model's weights"}
SHOWN = {"sit": "SiT", "mar": "MAR"}
# Distances and ratios, whose steps are ratios as an FID's are.
LOGARITHMIC = ("rfid", "rfid_noise_0.4", "midpoint_fid", "channel_std_ratio", "gaussian_distance", "euler_steps")
HOW = (
    "No forecast is kept yet. `bash scripts/study.sh --report` measures the autoencoders of a study, and `bash scripts/study.sh --forecast` "
    "fits one to their generators' FID."
)


class Refused(Exception):
    """Why a tokenizer has no forecast, in one line."""


def distance(name: str, value: float, reference: float) -> float:
    """How far a figure is from the reference's: the difference, or the logarithm of the ratio.

    Raises:
        Refused: there is no logarithm.
    """
    if name not in LOGARITHMIC:
        return value - reference
    if min(value, reference) <= 0:
        raise Refused(f"{FIGURES[name].label} is not above 0")
    return math.log(value / reference)


def protocol_of(config: ReportConfig) -> dict[str, Any]:
    """The options that a forecast depends on; which images and networks they are is a matter of fingerprints, and a prior changes no figure of it."""
    return to_dict(replace(config, prior="", data=ImageConfig()))


def kept_forecasts(named: str = "") -> list[dict[str, Any]]:
    """The forecast in the file ``named``, or all that are kept.

    Raises:
        UserError: a file that is no forecast of this version.
    """
    files = [Path(named)] if named else sorted(FORECASTS.glob("*.json"))
    made = [read_json(file, "forecast") for file in files]
    for file, forecast in zip(files, made):
        needed = {"study", "images", "protocol", "protocol_version", "weights", "cells", "reference", "generators"}
        if forecast.get("format") != FORMAT_VERSION or not needed <= forecast.keys():
            study = forecast.get("study", "<its study>")
            raise UserError(
                f"{file} is no forecast of this version: fit it again by `bash scripts/study.sh --data {study} --forecast` (a "
                "table of your own by its file)"
            )
    return made


def expected(entry: dict[str, Any], config: ReportConfig, kept: list[dict[str, Any]]) -> dict[str, Any]:
    """What is expected of the tokenizer that ``entry`` of a report says, by generator, or ``refused``, why nothing is.

    Args:
        entry: of ``tokenizers`` in ``report.json``.
        config: of the report.
        kept: forecasts; the one that was fitted to these images counts.
    """
    try:
        forecast = _fitting(entry, config, kept)
    except Refused as why:
        return {"refused": str(why)}
    made = {}
    for name, model in forecast["generators"].items():
        try:
            made[name] = _of_generator(entry["figures"], forecast["reference"]["figures"], model)
        except Refused as why:
            made[name] = {"refused": str(why)}
    return {"study": forecast["study"], "generators": made}


def _fitting(entry: dict[str, Any], config: ReportConfig, kept: list[dict[str, Any]]) -> dict[str, Any]:
    images = entry["about"].get("images")
    of_images = [forecast for forecast in kept if forecast["images"] == images]
    if not of_images:
        studies = " and ".join(forecast["study"] for forecast in kept)
        raise Refused(f"its images are others than those of the study {studies}, which the forecast was fitted on")
    [forecast] = of_images[:1]
    if forecast["protocol_version"] != PROTOCOL_VERSION:
        raise Refused(
            f"the forecast was fitted on figures of version {forecast['protocol_version']}, and these are of {PROTOCOL_VERSION}"
        )
    if told := changed_options(ReportConfig, forecast["protocol"], protocol_of(config)):
        raise Refused(f"the forecast was fitted on reports with other options ({'; '.join(told[:3])})")
    if others := other_weights(entry["weights"], forecast["weights"]):
        raise Refused(f"the forecast was fitted on figures by other networks: {', '.join(others)} differ")
    return forecast


def other_weights(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """The networks, in words, that two reports both look with, and whose weights' fingerprints differ."""
    return [shown for name, shown in NETWORKS.items() if name in one.keys() & other.keys() and one[name] != other[name]]


def _of_generator(figures: dict[str, Any], reference: dict[str, float], model: dict[str, Any]) -> dict[str, Any]:
    """Ratio, the factor that it is uncertain by, and its rank among the rows that were measured."""
    logarithm = 0.0
    for name, part in model["figures"].items():
        value = (figures.get(name) or {}).get("value")
        if value is None:
            raise Refused(f"{FIGURES[name].label} was not measured")
        away = distance(name, value, reference[name])
        if not part["least"] <= away <= part["most"]:
            least, most = (_value_at(name, part[end], reference[name]) for end in ("least", "most"))
            shown, low, high = (number(FIGURES[name], {"value": v, "error": None}) for v in (value, least, most))
            raise Refused(f"its {FIGURES[name].label} is {shown}, outside of what was fitted, {low} to {high}")
        logarithm += part["coefficient"] * away / part["scale"]
    ratio = math.exp(logarithm)
    known = [row["ratio"] for row in model["rows"].values() if row["ratio"] is not None]
    return {
        "ratio": ratio,
        "factor": math.exp(model["error"]),
        "rank": 1 + sum(other < ratio for other in known),
        "of": len(known) + 1,
    }


def _value_at(name: str, away: float, reference: float) -> float:
    """The inverse of :func:`distance`."""
    return reference * math.exp(away) if name in LOGARITHMIC else reference + away


def lines(report: dict[str, Any]) -> list[list[str]]:
    """The forecast as a table: a heading, then a line for every tokenizer; empty where no forecast is kept."""
    told = [(one["name"], one["forecast"]) for one in report["tokenizers"] if "forecast" in one]
    names = [name for name in SHOWN if any(name in forecast.get("generators", {}) for _, forecast in told)]
    made = [["", *(f"{SHOWN[name]}: FID as a ratio to no regulariser's, and rank" for name in names)]]
    if told and not names:
        made = [["", "expected"]]
    for tokenizer, forecast in told:
        if "refused" in forecast:
            made.append([tokenizer, f"none: {forecast['refused']}", *[""] * (len(names) - 1)])
        else:
            made.append([tokenizer, *(in_words(forecast["generators"].get(name)) for name in names)])
    return made if told else []


def in_words(part: dict[str, Any] | None) -> str:
    """One entry of :func:`lines`."""
    if part is None:
        return "-"
    if "refused" in part:
        return f"none: {part['refused']}"
    return f"{part['ratio']:.2f} (a factor of {part['factor']:.2f} either way), {part['rank']} of {part['of']}"
