"""What is left out of a report, and why, in as few lines as there are reasons."""

from __future__ import annotations

from flowprior.errors import one_line
from latent_report.curves import CURVES
from latent_report.figures import FIGURES, GROUPS

# What messages call the options of a stage, and what they are called here.
OPTIONS = {
    "loss.perceptual_weights=<path>, or write loss.perceptual_weight=0": "lpips_weights=<path>",
    "weights_path, or evaluate.weights beside evaluate.extractor=dinov2": "extractor_weights=",
    "weights_path, or evaluate.weights": "extractor_weights=",
    "evaluate.timm.weights": "extractor_weights",
}
TABLES = (FIGURES, CURVES)


def in_own_words(error: Exception) -> str:
    """What an error says, on one line, with the report's names for options of a stage."""
    told = one_line(error, limit=None)
    for theirs, own in OPTIONS.items():
        told = told.replace(theirs, own)
    return told


def named_in(group: str) -> list[str]:
    """Every figure and curve of a group."""
    return [name for table in TABLES for name, one in table.items() if one.group == group]


def by_reason(left_out: dict[str, str]) -> list[tuple[str, str]]:
    """Reasons by the name of a figure or a curve, as pairs of what is missing, in words, and the reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        reasons.setdefault(reason, []).append(name)
    return [(_in_words(names), reason) for reason, names in reasons.items()]


def _in_words(names: list[str]) -> str:
    words = []
    for group, heading in GROUPS.items():
        own = named_in(group)
        missing = [name for name in own if name in names]
        labels = [(FIGURES[name] if name in FIGURES else CURVES[name]).label for name in missing]
        words += [f"all of {heading.partition(':')[0]}"] if missing == own else labels
    return ", ".join(dict.fromkeys(words))
